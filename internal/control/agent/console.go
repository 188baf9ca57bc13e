package agent

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// consoleKept is how much of the serial output a VM's console remembers for those who join later.
const consoleKept = 64 << 10

// consoleQueue bounds the chunks that wait for one slow watcher; beyond it the watcher is cut, the guest never waits.
const consoleQueue = 256

// console shares one QEMU serial socket between any number of watchers. QEMU's socket takes one client at a time, so
// the agent is that client and passes on.
type console struct {
	path string

	mu       sync.Mutex
	conn     net.Conn // nil while not connected
	kept     []byte
	watchers map[chan []byte]bool
}

func newConsole(path string) *console {
	return &console{path: path, watchers: map[chan []byte]bool{}}
}

// run keeps the connection to QEMU until ctx ends.
func (c *console) run(ctx context.Context) {
	lines(ctx, c.path, func(conn net.Conn) {
		c.setConn(conn)
		defer c.setConn(nil)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				c.publish(buf[:n])
			}
			if err != nil {
				return
			}
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watchers {
		close(w)
		delete(c.watchers, w)
	}
}

func (c *console) setConn(conn net.Conn) {
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
}

// publish remembers a chunk and gives each watcher a copy of it.
func (c *console) publish(chunk []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, chunk...)
	if len(c.kept) >= 2*consoleKept { // cut seldom: a chatty guest would have all of it moved for every line
		c.kept = append(c.kept[:0], c.kept[len(c.kept)-consoleKept:]...)
	}
	if len(c.watchers) == 0 {
		return
	}
	chunk = bytes.Clone(chunk) // the reader uses its own again
	for w := range c.watchers {
		select {
		case w <- chunk:
		default:
			close(w)
			delete(c.watchers, w)
		}
	}
}

// watch returns what was said so far and a channel with what follows; the channel is closed when the VM's process ends
// or the watcher is too slow. leave must be called.
func (c *console) watch() (kept []byte, output <-chan []byte, leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := make(chan []byte, consoleQueue)
	c.watchers[w] = true
	return append([]byte(nil), c.kept[max(0, len(c.kept)-consoleKept):]...), w, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.watchers[w] {
			close(w)
			delete(c.watchers, w)
		}
	}
}

// consoleWrite bounds how long a guest that does not read its serial port can hold up a typist.
const consoleWrite = 2 * time.Second

// write types into the guest.
func (c *console) write(b []byte) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return fault.New(fault.Unavailable, "the serial port is not connected yet: try again")
	}
	if err := conn.SetWriteDeadline(time.Now().Add(consoleWrite)); err != nil {
		return fault.New(fault.Unavailable, "serial port: %w", err)
	}
	if _, err := conn.Write(b); err != nil {
		return fault.New(fault.Unavailable, "serial port: %w", err)
	}
	return nil
}

// reconnectEvery is the pause between two tries to reach a QEMU socket that is not there yet.
const reconnectEvery = 100 * time.Millisecond

// lines connects to the unix socket, hands the connection to serve, and does so again whenever serve returns, until ctx
// ends. The connection is closed when ctx ends, which is how serve learns of it.
func lines(ctx context.Context, path string, serve func(net.Conn)) {
	var dialer net.Dialer
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // wakes the reader; it has no other use
			serve(conn)
			stop()
			_ = conn.Close() // read to its end already
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnectEvery):
		}
	}
}

// Console joins the serial port of a VM that runs here: what it said lately, what it says from now on (the channel is
// closed when its process ends), and how to type. leave must be called.
func (a *Agent) Console(id inventory.VMID) (kept []byte, output <-chan []byte, write func([]byte) error, leave func(), err error) {
	v, err := a.own(id)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	v.mu.Lock()
	c := v.console
	v.mu.Unlock()
	if c == nil {
		return nil, nil, nil, nil, fault.New(fault.Conflict, "console of vm %s: it is %v: start it first", v.record().Spec.Name, v.snapshot().State)
	}
	kept, output, leave = c.watch()
	return kept, output, c.write, leave, nil
}
