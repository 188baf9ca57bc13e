package vnet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

const (
	writeChunk    = 64 << 10 // bytes written at once: what Hold cannot call back
	readBuffer    = 256 << 10
	socketRoom    = 208 << 10   // bytes of the kernel's for what QEMU has not read, its overhead included: Linux' own default
	batchMax      = 64          // frames handed to the fabric under one lock
	socketPathMax = 107         // sockaddr_un without its final zero
	drainWait     = time.Second // Hold's and Forward's bound on waiting for QEMU
	drainPoll     = 200 * time.Microsecond
)

// socket is the unix socket of a port and its client, of which there is one at a time.
type socket struct {
	listener *net.UnixListener
	path     string
	fabric   *fabric
	port     *port
	log      *slog.Logger
	closing  chan struct{} // closed when the port is removed
	once     sync.Once

	recent recent // what was written to the client lately, while the port is tracked

	mu     sync.Mutex
	client *client
}

// client is one connection to a port.
type client struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	done chan struct{} // closed when the connection is given up
	once sync.Once
	wait sync.WaitGroup
	busy atomic.Bool // frames have been read and not yet passed to the fabric
}

// listenSocket makes a port's socket. A socket file that lies there is left from a switch that died: the caller holds the
// lock that keeps a second switch away.
func listenSocket(ctx context.Context, spec PortSpec) (*net.UnixListener, error) {
	if spec.Socket == "" || len(spec.Socket) > socketPathMax {
		return nil, fault.New(fault.Invalid, "port %s: socket path %q is empty or longer than %d bytes: use a shorter directory",
			spec.ID, spec.Socket, socketPathMax)
	}
	switch info, err := os.Lstat(spec.Socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fault.New(fault.Invalid, "port %s: %w", spec.ID, err)
	case info.Mode()&fs.ModeSocket == 0:
		return nil, fault.New(fault.Exists, "port %s: %s is there and no socket: remove it or choose another path", spec.ID, spec.Socket)
	default:
		if err := os.Remove(spec.Socket); err != nil {
			return nil, fault.New(fault.Denied, "port %s: old socket: %w", spec.ID, err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", spec.Socket)
	if err != nil {
		return nil, fault.New(fault.Invalid, "port %s: %w", spec.ID, err)
	}
	err = os.Chmod(spec.Socket, 0o600)
	if err == nil && spec.Owner != 0 && spec.Owner != os.Geteuid() {
		err = os.Chown(spec.Socket, spec.Owner, -1)
	}
	if err != nil {
		_ = l.Close() // the error that matters is the one above
		return nil, fault.New(fault.Denied, "port %s: %w: only root can give a socket to another user", spec.ID, err)
	}
	return l.(*net.UnixListener), nil
}

// run accepts clients until ctx ends or the port is removed.
func (k *socket) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, k.close)
	defer stop()
	defer func() { k.replace(nil) }()
	for {
		conn, err := k.listener.AcceptUnix()
		if err != nil {
			select {
			case <-k.closing:
				return
			default:
			}
			k.log.WarnContext(ctx, "port does not accept", slog.String("port", k.port.spec.ID), slog.Any("err", err))
			select { // out of files, most likely: it passes
			case <-k.closing:
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		_ = conn.SetWriteBuffer(socketRoom / 2) // the kernel doubles it; it refuses nothing
		raw, err := conn.SyscallConn()
		if err != nil {
			_ = conn.Close() // it was closed already, there is no other reason
			continue
		}
		k.replace(&client{conn: conn, raw: raw, done: make(chan struct{})})
	}
}

// close ends run and removes the socket file.
func (k *socket) close() {
	k.once.Do(func() {
		close(k.closing)
		_ = k.listener.Close() // removes the file; an error means that it was gone
	})
}

// replace ends the client there is, waits for it, and serves c, if any.
func (k *socket) replace(c *client) {
	k.mu.Lock()
	old := k.client
	k.client = c
	k.mu.Unlock()
	if old != nil {
		old.close()
		old.wait.Wait()
	}
	if c == nil {
		return
	}
	k.fabric.attach(k.port, true, time.Now())
	c.wait.Go(func() { k.write(c) })
	c.wait.Go(func() {
		k.read(c)
		c.close()
		k.mu.Lock()
		current := k.client == c
		k.mu.Unlock()
		if current {
			k.fabric.attach(k.port, false, time.Now())
		}
	})
}

func (c *client) close() {
	c.once.Do(func() {
		close(c.done)
		_ = c.conn.Close() // nothing is lost that the peer had not lost
	})
}

// read passes the client's frames to the fabric until the connection ends.
func (k *socket) read(c *client) {
	r := bufio.NewReaderSize(&rawReader{client: c}, readBuffer)
	frames := make([]*frame, 0, batchMax)
	var runts uint64
	for {
		fr, err := readFrame(r, &runts)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
				k.log.Warn("port client dropped", slog.String("port", k.port.spec.ID), slog.Any("err", err))
			}
			return
		}
		frames = append(frames[:0], fr)
		for len(frames) < batchMax && blockBuffered(r) {
			if fr, err = readFrame(r, &runts); err != nil {
				break // the next round reports it
			}
			frames = append(frames, fr)
		}
		for rest := frames; len(rest) > 0; {
			var gate <-chan struct{}
			if rest, gate = k.fabric.fromPort(k.port, rest, time.Now()); gate == nil {
				break
			}
			select {
			case <-gate:
			case <-c.done:
				for _, fr := range rest {
					fr.release()
				}
				return
			}
		}
	}
}

// rawReader reads a client and notes, before anything leaves the kernel's buffer, that the switch has frames of it in
// its hands; drained relies on it.
type rawReader struct {
	client *client
}

func (r *rawReader) Read(b []byte) (int, error) {
	var n int
	var readErr error
	err := r.client.raw.Read(func(fd uintptr) bool {
		r.client.busy.Store(true)
		for {
			n, readErr = unix.Read(int(fd), b)
			if !errors.Is(readErr, unix.EINTR) {
				break
			}
		}
		if errors.Is(readErr, unix.EAGAIN) {
			r.client.busy.Store(false)
			return false
		}
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case readErr != nil:
		return 0, readErr
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// write sends what is queued for the client until the connection ends.
func (k *socket) write(c *client) {
	out := k.port.out
	var batch []item
	buf := make([]byte, 0, writeChunk+frameMax)
	for {
		batch = out.take(batch[:0], writeChunk)
		if len(batch) == 0 {
			select {
			case <-out.wake:
				continue
			case <-c.done:
				return
			}
		}
		buf = buf[:0]
		for i := range batch {
			fr := batch[i].frame
			buf = binary.BigEndian.AppendUint32(buf, uint32(len(fr.data)))
			buf = append(buf, fr.data...)
			k.recent.note(fr)
			fr.release()
			batch[i] = item{}
		}
		_, err := c.conn.Write(buf)
		out.done()
		if err != nil {
			k.fabric.dropped(k.port, len(batch))
			c.close()
			return
		}
	}
}

// current returns the client there is.
func (k *socket) current() *client {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.client
}

// unread returns how many bytes the client has not read yet, by the kernel's count, which includes its overhead.
func (k *socket) unread() int { return k.ioctl(unix.SIOCOUTQ) }

// unheard returns how many bytes of the client the switch has not read yet.
func (k *socket) unheard() int { return k.ioctl(unix.SIOCINQ) }

func (k *socket) ioctl(request uint) int {
	c := k.current()
	if c == nil {
		return 0
	}
	n := 0
	if err := c.raw.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetInt(int(fd), request); err == nil {
			n = v
		}
	}); err != nil {
		return 0 // closed: it will never read them
	}
	return n
}

// poll waits until ready, ctx or drainWait ends, and reports whether it was ready. The kernel tells nobody when a unix
// socket's queue has become empty, so it has to be asked.
func poll(ctx context.Context, ready func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	if ready() {
		return true
	}
	t := time.NewTicker(drainPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ready()
		case <-t.C:
			if ready() {
				return true
			}
		}
	}
}

// waitRead waits until the client has read all that was written to it. The port must be held.
func (k *socket) waitRead(ctx context.Context) error {
	if poll(ctx, func() bool { return k.port.out.idle() && k.unread() == 0 }) {
		return nil
	}
	return fault.New(fault.Unavailable, "port %s: its client leaves %d bytes unread: is the guest stopped or stuck?", k.port.spec.ID, k.unread())
}

// waitHeard waits until all that the client has sent is in the fabric. The guest must be stopped.
func (k *socket) waitHeard(ctx context.Context) error {
	c := k.current()
	if c == nil || poll(ctx, func() bool { return k.unheard() == 0 && !c.busy.Load() }) {
		return nil
	}
	return fault.New(fault.Unavailable, "port %s: its client goes on sending: stop the guest before forwarding", k.port.spec.ID)
}
