package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/godwit-vm/godwit/internal/fault"
)

// QueuedCallsMax bounds the calls that wait to be written to a QEMU that does not read.
const QueuedCallsMax = 64

// Conn is a connection to the monitor of one QEMU. All methods may be called by many goroutines. The owner calls Close.
type Conn struct {
	name     string // in errors: the socket's path
	conn     net.Conn
	greeting Greeting
	queue    chan *call
	done     chan struct{} // closed by fail, after err is set
	greeted  chan struct{} // closed by the reader, after greeting is set
	workers  sync.WaitGroup
	lastID   atomic.Uint64

	mu      sync.Mutex
	err     error // why the connection ended
	pending map[uint64]*call
	events  map[*Events]struct{}
}

// call is one command on its way. The caller alone decides about giving up; state tells the writer and the caller who was first.
type call struct {
	id    uint64
	bytes []byte
	file  *os.File // goes along as SCM_RIGHTS when not nil; owned by the call
	state atomic.Int32
	reply chan message // takes one, never blocks the reader
}

// The states of a call.
const (
	callQueued int32 = iota
	callTaken        // the writer has it: QEMU may see it
	callGivenUp
)

// Dial connects to the monitor socket at path, waits for QEMU's greeting and negotiates. QEMU serves one client at a
// time: while another one is connected the greeting does not come, and Dial waits for it until ctx ends. Errors:
// fault.Unavailable when nobody listens or QEMU stays silent.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fault.Wrap("connect to", "monitor "+path, fault.New(fault.Unavailable, "%w", err))
	}
	return Open(ctx, nc, path)
}

// Open does what Dial does over an open connection, which it takes over, also on an error. Name is for error messages.
func Open(ctx context.Context, nc net.Conn, name string) (*Conn, error) {
	c := &Conn{
		name: name, conn: nc,
		queue: make(chan *call, QueuedCallsMax), done: make(chan struct{}), greeted: make(chan struct{}),
		pending: map[uint64]*call{}, events: map[*Events]struct{}{},
	}
	c.workers.Go(c.read)
	c.workers.Go(c.write)
	err := c.negotiate(ctx)
	if err != nil {
		c.Close()
		return nil, fault.Wrap("connect to", "monitor "+name, err)
	}
	return c, nil
}

// negotiate waits for the greeting and leaves the negotiation mode. No capability is enabled: with oob QEMU would answer
// some commands out of order, and none that we use is allowed out of band.
func (c *Conn) negotiate(ctx context.Context) error {
	select {
	case <-c.greeted:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "no greeting: qemu is stuck, or another client holds its monitor: %w", ctx.Err())
	}
	return c.Do(ctx, "qmp_capabilities", nil, nil)
}

// Greeting returns what QEMU said first, its version among it.
func (c *Conn) Greeting() Greeting { return c.greeting }

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it stands.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and all calls and subscriptions on it, and returns when its goroutines are gone. It may be
// called more than once.
func (c *Conn) Close() {
	c.fail(fault.New(fault.Unavailable, "connection was closed here"))
	c.workers.Wait()
}

// fail ends the connection for the reason err; only the first call counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
	for e := range c.events {
		e.end(err)
	}
	clear(c.events)
	// Close only ends both directions of a socket; it has nothing to report that err does not.
	_ = c.conn.Close()
}

// Do runs the command name with the arguments args (marshalled as JSON; nil: none) and unmarshals its result into result
// (nil: dropped). Errors: QEMU's refusal is a *Error; a ctx that ends is fault.Canceled (fault.Unavailable when its deadline has
// passed) and leaves the connection usable; a connection that has ended is fault.Unavailable.
func (c *Conn) Do(ctx context.Context, name string, args, result any) error {
	return c.do(ctx, name, args, nil, result)
}

func (c *Conn) do(ctx context.Context, name string, args any, file *os.File, result any) error {
	return c.send(ctx, name, args, file).Wait(ctx, result)
}

// Sent is a command that was handed over to be written to QEMU. Wait is called once, and always: until then the connection keeps its answer.
type Sent struct {
	conn *Conn
	name string
	call *call
	err  error // it was not handed over
}

// Send hands a command over and does not wait for its answer, which Wait returns. QEMU executes the commands of one goroutine in the order of their
// Sends.
func (c *Conn) Send(ctx context.Context, name string, args any) *Sent {
	return c.send(ctx, name, args, nil)
}

func (c *Conn) send(ctx context.Context, name string, args any, file *os.File) *Sent {
	s := &Sent{conn: c, name: name, call: &call{id: c.lastID.Add(1), file: file, reply: make(chan message, 1)}}
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{name, args, s.call.id})
	if err != nil {
		s.err = fault.New(fault.Invalid, "arguments: %w", err)
		return s
	}
	s.call.bytes = append(text, '\n')
	if s.err = c.register(s.call); s.err != nil {
		return s
	}
	select {
	case c.queue <- s.call:
	case <-c.done:
		s.err = c.Err()
	case <-ctx.Done():
		s.err = gaveUp(ctx, true)
	}
	return s
}

// Wait returns QEMU's answer to the command as Do does.
func (s *Sent) Wait(ctx context.Context, result any) error {
	reply, err := s.answer(ctx)
	switch {
	case err != nil:
	case reply.Error != nil:
		refusal := &Error{Class: Class(reply.Error.Class), Desc: reply.Error.Desc}
		err = fault.New(refusal.kind(), "%w", refusal)
	case result != nil:
		if jsonErr := json.Unmarshal(reply.Return, result); jsonErr != nil {
			err = fault.New(fault.Internal, "unexpected result: %w", jsonErr)
		}
	}
	return fault.Wrap("qmp", s.name, err)
}

func (s *Sent) answer(ctx context.Context) (message, error) {
	c, cl := s.conn, s.call
	defer c.forget(cl)
	defer func() {
		if cl.state.CompareAndSwap(callQueued, callGivenUp) {
			cl.closeFile()
		}
	}()
	if s.err != nil {
		return message{}, s.err
	}
	select {
	case reply := <-cl.reply:
		return reply, nil
	case <-c.done:
		// The last words of a QEMU that quits may be the reply to this very call.
		select {
		case reply := <-cl.reply:
			return reply, nil
		default:
			return message{}, c.Err()
		}
	case <-ctx.Done():
		unsent := cl.state.CompareAndSwap(callQueued, callGivenUp)
		if unsent {
			cl.closeFile()
		}
		return message{}, gaveUp(ctx, unsent)
	}
}

// closeFile closes the call's file; whoever takes the call out of callQueued does it.
func (cl *call) closeFile() {
	if cl.file != nil {
		_ = cl.file.Close() // a duplicate made for sending: nothing was written to it
	}
}

// gaveUp is the error of a call whose ctx has ended.
func gaveUp(ctx context.Context, unsent bool) error {
	cause := ctx.Err()
	kind := fault.Canceled
	if errors.Is(cause, context.DeadlineExceeded) {
		kind = fault.Unavailable
	}
	if unsent {
		return fault.New(kind, "qemu does not read, %w: %w", ErrUnsent, cause)
	}
	return fault.New(kind, "qemu does not answer, the command may still take effect: %w", cause)
}

func (c *Conn) register(cl *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.pending[cl.id] = cl
	return nil
}

func (c *Conn) forget(cl *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, cl.id)
}

// write sends queued calls in order until the connection ends. It is a goroutine of its own because a half-written
// command cannot be taken back: a caller that gives up must be able to leave while the rest of its bytes waits.
func (c *Conn) write() {
	for {
		select {
		case <-c.done:
			return
		case cl := <-c.queue:
			if !cl.state.CompareAndSwap(callQueued, callTaken) {
				continue
			}
			err := c.transmit(cl)
			cl.closeFile()
			if err != nil {
				c.fail(fault.New(fault.Unavailable, "qemu is gone: %w", err))
				return
			}
		}
	}
}

// transmit writes one command, with its file if it has one.
func (c *Conn) transmit(cl *call) error {
	if cl.file == nil {
		_, err := c.conn.Write(cl.bytes)
		return err
	}
	uc, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("a file can only be passed over a unix socket")
	}
	raw, err := cl.file.SyscallConn()
	if err != nil {
		return err
	}
	var rights []byte
	// Fd would switch the file to blocking mode; the number read here stays valid, since the call owns the file.
	if err := raw.Control(func(fd uintptr) { rights = syscall.UnixRights(int(fd)) }); err != nil {
		return err
	}
	// The descriptor must arrive with the command's first byte; Write sends what did not fit.
	n, _, err := uc.WriteMsgUnix(cl.bytes, rights, nil)
	if err == nil && n < len(cl.bytes) {
		_, err = uc.Write(cl.bytes[n:])
	}
	return err
}

// read dispatches what QEMU says until the connection ends.
func (c *Conn) read() {
	d := newDecoder(c.conn, MessageBytesMax)
	greeted := false
	for {
		m, err := d.next()
		switch {
		case errors.Is(err, io.EOF):
			c.fail(fault.New(fault.Unavailable, "qemu is gone: it closed its monitor"))
			return
		case err != nil:
			c.fail(fault.New(fault.Unavailable, "qemu is gone: %w", err))
			return
		case m.Greeting != nil && !greeted:
			greeted = true
			c.greeting = *m.Greeting
			close(c.greeted)
		case m.Event != "":
			c.publish(Event{Name: m.Event, Time: m.Timestamp.time(), Data: m.Data})
		case m.ID != nil:
			c.answer(*m.ID, m)
		}
	}
}

// answer hands a reply to the call that waits for it. A reply to a call that was given up is dropped here.
func (c *Conn) answer(id uint64, m message) {
	c.mu.Lock()
	cl := c.pending[id]
	delete(c.pending, id) // a second reply with the same id finds nobody
	c.mu.Unlock()
	if cl != nil {
		cl.reply <- m
	}
}
