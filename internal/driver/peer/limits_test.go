package peer_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
)

// closed reports whether the other side closes the connection rather than wait for us.
func closed(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(within)))
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// One address that opens connections and says nothing takes its own places only: a host from another address is let in.
func TestStrangersFillOnlyTheirAddress(t *testing.T) {
	c := newCluster(t, "birds")
	second := c.join(t, "host-2")
	address, _ := serve(t, &peer.Server{
		Identity: c.first, HTTP: requireHost(hello), Limits: peer.Limits{Handshakes: 16, HandshakesPerAddress: 4},
	})
	from := func(ip string) net.Conn {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	for range 4 {
		from("127.0.0.9")
	}
	if !closed(t, from("127.0.0.9"), time.Second) {
		t.Error("the fifth connection of one address was not closed at once")
	}
	dialer := peer.NewDialer(second) // from 127.0.0.1
	defer dialer.Close()
	code, body, err := get(t, dialer.HTTPClient("host-1", address), "https://"+address+"/")
	if err != nil || code != http.StatusOK || !strings.HasPrefix(body, "host-2 true") {
		t.Errorf("host-2 got %d %q %v", code, body, err)
	}
	// When their time for the handshake is up the places are free again.
	for end := time.Now().Add(20 * time.Second); closed(t, from("127.0.0.9"), 100*time.Millisecond); {
		if time.Now().After(end) {
			t.Fatal("the places were never free again")
		}
	}
}

// A host's calls have so many connections; its streams are not counted, since migrations must not wait for calls.
func TestAHostsConnectionsAreBoundedAndItsStreamsAreNot(t *testing.T) {
	c := newCluster(t, "birds")
	second := c.join(t, "host-2")
	refused := make(chan string, 8)
	address, _ := serve(t, &peer.Server{
		Identity: c.first, Limits: peer.Limits{ConnectionsPerHost: 2},
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := peer.RefusedOf(r.Context()); err != nil {
				refused <- err.Error()
				http.Error(w, err.Error(), http.StatusTooManyRequests)
			}
		}),
		Stream: func(_ context.Context, s *peer.Stream) {
			if s.Accept() == nil {
				_, _ = io.Copy(io.Discard, s)
			}
		},
	})
	call := func() int { // each Dialer has a connection of its own
		dialer := peer.NewDialer(second)
		t.Cleanup(dialer.Close)
		code, _, err := get(t, dialer.HTTPClient("host-1", address), "https://"+address+"/")
		must(t, err)
		return code
	}
	for i, want := range []int{http.StatusOK, http.StatusOK, http.StatusTooManyRequests} {
		if got := call(); got != want {
			t.Errorf("connection %d is answered %d, not %d", i+1, got, want)
		}
	}
	if got := <-refused; got != "host host-2 has 2 connections here, the most that one host may have (limits.connections-per-host): try again" {
		t.Error(got)
	}
	for range 8 {
		conn, err := peer.NewDialer(second).DialStream(t.Context(), "host-1", address, []byte("memory"))
		if err != nil {
			t.Fatalf("a stream beside full connections: %v", err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// A header without end is cut before it fills the memory.
func TestLongHeadersOfHostsAreRefused(t *testing.T) {
	c := newCluster(t, "birds")
	second := c.join(t, "host-2")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: hello, Limits: peer.Limits{HeaderBytes: 4 << 10}})
	dialer := peer.NewDialer(second)
	defer dialer.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/", nil)
	must(t, err)
	request.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	resp, err := dialer.HTTPClient("host-1", address).Do(request)
	if err != nil { // HTTP/2 has no answer for it; the connection is closed (RFC 9113, 10.5.1)
		if !strings.Contains(err.Error(), "GOAWAY") && !strings.Contains(err.Error(), "larger than peer's advertised limit") {
			t.Error(err)
		}
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("it is answered %s", resp.Status)
	}
}
