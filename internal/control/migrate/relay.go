package migrate

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// relayBuffer is the piece in which the memory stream is copied: large enough that a system call and a TLS record are
// cheap beside it, small enough that an agent's memory stays small.
const relayBuffer = 256 << 10

// incomingBuffer is what the socket to the incoming QEMU may hold. QEMU reads 32 KiB at a time; with the kernel's default of some
// 200 KiB it and the agent wake each other for each piece, which costs a tenth of the relay's time. Much more would only
// lengthen the pause, since all of it has to be read after the guest has stopped.
const incomingBuffer = 1 << 20

// halfCloser is what both unix and TLS connections can: end one direction and keep the other.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// Relay joins QEMU's migration socket with the stream to the other agent, so that QEMU sees a unix socket only and the
// agent owns what can be cut. One Relay serves one migration.
type Relay struct {
	forward atomic.Int64 // bytes from source to target so far
	last    atomic.Int64 // unix nanoseconds of the last byte in any direction
}

// Sent returns the bytes that went from the first connection to the second.
func (r *Relay) Sent() int64 { return r.forward.Load() }

// Quiet returns for how long no byte moved in either direction.
func (r *Relay) Quiet() time.Duration { return time.Since(time.Unix(0, r.last.Load())) }

// Run copies both ways until both directions have ended, one fails, or ctx ends; then it closes both connections. The
// end of one direction is passed on as such, because QEMU's return path outlives its forward path. It returns nil only
// when both directions ended in order.
func (r *Relay) Run(ctx context.Context, from, to halfCloser) error {
	r.last.Store(time.Now().UnixNano())
	stop := context.AfterFunc(ctx, func() { closeBoth(from, to) })
	defer stop()
	var both errgroup.Group
	one := func(dst, src halfCloser, count *atomic.Int64) func() error {
		return func() error {
			buf := make([]byte, relayBuffer)
			for {
				n, err := src.Read(buf)
				if n > 0 {
					r.last.Store(time.Now().UnixNano())
					if _, werr := dst.Write(buf[:n]); werr != nil {
						closeBoth(from, to)
						return werr
					}
					if count != nil {
						count.Add(int64(n))
					}
				}
				if errors.Is(err, io.EOF) {
					return dst.CloseWrite()
				}
				if err != nil {
					closeBoth(from, to)
					return err
				}
			}
		}
	}
	both.Go(one(to, from, &r.forward))
	both.Go(one(from, to, nil))
	err := both.Wait()
	closeBoth(from, to)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func closeBoth(a, b net.Conn) {
	_ = a.Close() // the end was reached or the stream is cut on purpose: nothing is left to say
	_ = b.Close()
}

// widen lets a socket hold that many bytes on their way out, if the kernel lets us: beyond its limit only root may go.
func widen(conn net.Conn, size int) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size) // as much as the limit allows; less is slower, not wrong
		}
	})
}
