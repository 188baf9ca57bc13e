// Package stream is the Linux guest's network services and the readers of what they send: echo over TCP and UDP, and a counting
// stream over TCP and UDP whose reader can prove that not a byte was lost, doubled or changed.
//
//	7/tcp, 7/udp   what comes in goes back
//	19/tcp         after the line "rate BYTES_PER_SECOND\n" an endless stream of 8-byte big-endian numbers 0, 1, 2 …
//	19/udp         a datagram from a client starts numbers for it, 8 bytes each, 100 per second, until it was silent for 5 s
//	20/udp         numbered packets both ways at thousands a second, as the control protocol asks for; each end has a Tally
//
// The package holds no state of the guest and runs on any system; guest/init serves, tests, demo and bench read.
package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The ports of the services.
const (
	EchoPort  = 7
	CountPort = 19
)

// RateMax bounds the rate a client of the counting stream may ask for, in bytes per second; 0 asks for as fast as the connection takes it.
const RateMax = 10 << 30

const (
	wordSize      = 8
	blockSize     = 64 << 10 // written or read at once at most
	pace          = 10 * time.Millisecond
	requestMax    = 64 // bytes of the client's first line
	connectionMax = 256
)

// serve accepts connections and runs handle for each in its own goroutine, until ctx ends; then it closes them all and waits.
// Beyond connectionMax a new connection waits for an old one to end.
func serve(ctx context.Context, listener net.Listener, handle func(context.Context, net.Conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // a second close is harmless
	defer stop()
	room := make(chan struct{}, connectionMax)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		handlers.Go(func() {
			defer func() { <-room }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer func() { _ = conn.Close() }()
			_ = handle(ctx, conn) // a client that goes away is the normal end; the next one is served all the same
		})
	}
}

// ServeEcho sends back what each connection of listener sends, until ctx ends. It closes the listener.
func ServeEcho(ctx context.Context, listener net.Listener) error {
	return serve(ctx, listener, func(_ context.Context, conn net.Conn) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 4<<10))
		return err
	})
}

// ServeCount sends numbers to each connection of listener, until ctx ends. It closes the listener.
func ServeCount(ctx context.Context, listener net.Listener) error {
	return serve(ctx, listener, func(ctx context.Context, conn net.Conn) error {
		rate, err := readRate(conn)
		if err != nil {
			_, _ = fmt.Fprintf(conn, "%v\n", err) // for the person with a telnet; it may be gone
			return err
		}
		return count(ctx, conn, rate)
	})
}

// readRate reads the first line byte by byte: it is short, and what follows it is not ours to swallow.
func readRate(r io.Reader) (int64, error) {
	var line []byte
	for len(line) < requestMax {
		var b [1]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, err
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "rate ")
		rate, err := strconv.ParseInt(text, 10, 64)
		if !ok || err != nil || rate < 0 || rate > RateMax {
			return 0, fmt.Errorf("%q is no rate; send rate BYTES_PER_SECOND", line)
		}
		return rate, nil
	}
	return 0, fmt.Errorf("first line is longer than %d bytes; send rate BYTES_PER_SECOND", requestMax)
}

// count writes numbers at a rate. A time in which the connection took nothing is not made up for, as that would be a storm.
func count(ctx context.Context, w io.Writer, rate int64) error {
	var number uint64
	block := make([]byte, blockSize)
	send := func(size int64) error {
		for size > 0 {
			n := min(size, blockSize)
			for at := int64(0); at < n; at += wordSize {
				binary.BigEndian.PutUint64(block[at:], number)
				number++
			}
			if _, err := w.Write(block[:n]); err != nil {
				return err
			}
			size -= n
		}
		return nil
	}
	if rate == 0 {
		for ctx.Err() == nil {
			if err := send(blockSize); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	perTick := float64(rate) * pace.Seconds()
	var due float64
	for {
		due += perTick
		whole := int64(due) / wordSize * wordSize
		if err := send(whole); err != nil {
			return err
		}
		due -= float64(whole)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// Reader reads a counting stream and checks every byte of it.
type Reader struct {
	conn io.Reader
	next uint64 // the number that must come next
	rest int    // bytes of a number that was cut by the last read, at the start of block
	data []byte
}

// ErrNotExact is what Read's error wraps when the stream is not byte-exact; the connection itself was fine.
var ErrNotExact = errors.New("stream is not byte-exact")

// NewReader asks for a rate in bytes per second (0 is as fast as can be) over conn, a new connection to CountPort, and returns the
// reader of what comes. One goroutine may use it at a time.
func NewReader(conn io.ReadWriter, rate int64) (*Reader, error) {
	if rate < 0 || rate > RateMax {
		return nil, fmt.Errorf("rate of %d bytes per second is not between 0 and %d", rate, int64(RateMax))
	}
	if _, err := fmt.Fprintf(conn, "rate %d\n", rate); err != nil {
		return nil, fmt.Errorf("counting stream: %w", err)
	}
	return &Reader{conn: conn, data: make([]byte, blockSize)}, nil
}

// Read waits for the next bytes, checks them and returns how many they were. It ends like the connection's Read, so set a deadline there to
// bound it, or with ErrNotExact. The gap a user notices is the time between two returns.
func (r *Reader) Read() (int, error) {
	n, err := r.conn.Read(r.data[r.rest:])
	if err != nil && n == 0 {
		return 0, err
	}
	have := r.rest + n
	at := 0
	for ; at+wordSize <= have; at += wordSize {
		if got := binary.BigEndian.Uint64(r.data[at:]); got != r.next {
			return n, fmt.Errorf("%w: number %d came where %d was due", ErrNotExact, got, r.next)
		}
		r.next++
	}
	r.rest = copy(r.data, r.data[at:have])
	return n, nil
}

// Bytes returns how many bytes were read and found exact.
func (r *Reader) Bytes() uint64 { return r.next*wordSize + uint64(r.rest) }
