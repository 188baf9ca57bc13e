package stream_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/guest/stream"
)

// waitMax bounds every wait of these tests.
const waitMax = 10 * time.Second

// serve runs a service on a loopback port for the length of the test and returns a connection to it.
func serve(t *testing.T, run func(context.Context, net.Listener) error) net.Conn {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- run(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("service ended with %v", err)
		}
	})
	return dial(t, "tcp4", listener.Addr().String())
}

func serveDatagrams(t *testing.T, run func(context.Context, *net.UDPConn) error) net.Conn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- run(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("service ended with %v", err)
		}
	})
	return dial(t, "udp4", conn.LocalAddr().String())
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(waitMax))
	return conn
}

func TestEchoReturnsWhatCame(t *testing.T) {
	conn := serve(t, stream.ServeEcho)
	if _, err := io.WriteString(conn, "fly\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "fly\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestDatagramEchoReturnsWhatCame(t *testing.T) {
	conn := serveDatagrams(t, stream.ServeDatagramEcho)
	if _, err := io.WriteString(conn, "fly"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, err := conn.Read(got); err != nil || string(got[:n]) != "fly" {
		t.Errorf("%q, %v", got[:n], err)
	}
}

func TestCountingStreamIsExactAtAnyRate(t *testing.T) {
	for _, rate := range []int64{0, 8, 999, 1 << 20, 100 << 20} {
		conn := serve(t, stream.ServeCount)
		r, err := stream.NewReader(conn, rate)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		want := min(max(uint64(rate)/5, 8), 4<<20)
		if rate == 0 {
			want = 4 << 20
		}
		for r.Bytes() < want {
			if _, err := r.Read(); err != nil {
				t.Fatalf("rate %d after %d bytes: %v", rate, r.Bytes(), err)
			}
		}
		if took := time.Since(start).Seconds(); rate > 1000 && float64(want)/took > 1.5*float64(rate) {
			t.Errorf("asked for %d bytes per second, got %.0f", rate, float64(want)/took)
		}
	}
}

func TestCountingStreamSaysWhatItWants(t *testing.T) {
	for _, line := range []string{"hello\n", "rate\n", "rate -1\n", "rate x\n", strings.Repeat("r", 100)} {
		conn := serve(t, stream.ServeCount)
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(conn)
		if !strings.Contains(string(said), "rate BYTES_PER_SECOND") {
			t.Errorf("to %q it said %q, %v", line, said, err)
		}
	}
}

func TestCountingDatagramsCount(t *testing.T) {
	conn := serveDatagrams(t, stream.ServeDatagramCount)
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 16)
	for want := range uint64(20) {
		n, err := conn.Read(word)
		if err != nil || n != 8 || binary.BigEndian.Uint64(word) != want {
			t.Fatalf("datagram %d: % x, %v", want, word[:n], err)
		}
	}
}

// pieces is a connection that delivers data in pieces of given sizes.
type pieces struct {
	data  []byte
	sizes func() int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.sizes())], p.data)
	p.data = p.data[n:]
	return n, nil
}

func (p *pieces) Write(b []byte) (int, error) { return len(b), nil }

func TestReaderFindsEveryFlawHoweverTheStreamIsCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 300).Draw(t, "numbers")
		var data []byte
		for i := range count {
			data = binary.BigEndian.AppendUint64(data, uint64(i))
		}
		flaw := rapid.SampledFrom([]string{"none", "flip", "drop", "double"}).Draw(t, "flaw")
		at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
		switch flaw {
		case "flip":
			data[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "drop": // a byte, and enough follows to show it
			data = append(data[:at], data[at+1:]...)
			data = append(data, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		case "double":
			data = append(data[:at+1], data[at:]...)
			data = append(data, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		}
		r, err := stream.NewReader(&pieces{data, func() int { return rapid.IntRange(1, 40).Draw(t, "piece") }}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = r.Read()
		}
		switch {
		case flaw == "none" && (!errors.Is(err, io.EOF) || r.Bytes() != uint64(8*count)):
			t.Fatalf("a good stream ended with %v after %d of %d bytes", err, r.Bytes(), 8*count)
		case flaw != "none" && !errors.Is(err, stream.ErrNotExact):
			t.Fatalf("%s at %d was not found: %v", flaw, at, err)
		}
	})
}
