package qga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// CallMax bounds a call whose context has no earlier end.
const CallMax = 5 * time.Second

// Error is the agent's refusal of a command, in its own words, cleaned.
type Error struct {
	Class string // CommandNotFound for one that this agent does not have or has switched off; else nearly always GenericError
	Desc  string
}

// Error returns the agent's description.
func (e *Error) Error() string { return e.Desc }

// Client is a connection to the agent of one guest. Many goroutines may use it; their calls go one after the other. The owner
// calls Close.
type Client struct {
	name   string // in errors: the socket's path
	conn   net.Conn
	in     *decoder
	turn   chan struct{} // holds one token: whose turn it is
	inStep bool          // the next line is the answer to the next command; only touched by whose turn it is
}

// Dial connects to the socket of the agent's port and synchronises with the agent. QEMU serves one client of the port at a time. Do
// not call it while the guest's side of the port is closed: QEMU would keep what is sent for an agent that comes much later. Errors:
// fault.Unavailable when nobody listens, or no agent answers before ctx ends.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fault.Wrap("connect to", "guest agent "+path, fault.New(fault.Unavailable, "%w", err))
	}
	c := newClient(conn, path)
	if err := c.Ping(ctx); err != nil {
		c.Close()
		return nil, fault.Wrap("connect to", "guest agent "+path, err)
	}
	return c, nil
}

func newClient(conn net.Conn, name string) *Client {
	c := &Client{name: name, conn: conn, in: newDecoder(conn), turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// Close ends the connection and all calls on it. It may be called more than once.
func (c *Client) Close() {
	_ = c.conn.Close() // only ends both directions of a socket
}

// call runs a command and unmarshals its result into result (nil: dropped). Errors: the agent's refusal is an *Error of
// kind fault.Conflict, or fault.Incompatible for a command that it does not have; silence and a lost connection are fault.Unavailable;
// words that are no answer fault.Internal.
func (c *Client) call(ctx context.Context, command string, arguments, result any) error {
	return c.callFor(ctx, CallMax, command, arguments, result)
}

// callFor is call with another bound than CallMax.
func (c *Client) callFor(ctx context.Context, most time.Duration, command string, arguments, result any) error {
	return fault.Wrap("guest agent", command, c.within(ctx, most, func() error {
		if err := c.step(); err != nil {
			return err
		}
		c.inStep = false
		if err := c.send(command, arguments); err != nil {
			return err
		}
		line, err := c.in.line()
		if err != nil {
			return err
		}
		c.inStep = true
		return read(line, result)
	}))
}

// within waits for its turn and runs f with the connection's deadline set to the end of ctx, or to most from now.
func (c *Client) within(ctx context.Context, most time.Duration, f func() error) error {
	ctx, done := context.WithTimeout(ctx, most)
	defer done()
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "it is busy: %w", ctx.Err())
	}
	// A deadline in the past wakes whoever reads or writes. It is cleared afterwards, and not before it was set.
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = c.conn.SetDeadline(time.Unix(1, 0)) // fails on a closed connection only
	})
	c.in.begin()
	err := f()
	if !stop() {
		<-woken
	}
	_ = c.conn.SetDeadline(time.Time{}) // as above
	if err != nil && ctx.Err() != nil {
		return fault.New(fault.Unavailable, "it does not answer: %w", ctx.Err())
	}
	return err
}

// step brings both ends into step, unless they are: the agent drops what it has of an unfinished command at the byte 0xFF, and puts one
// before its answer, so that all before it can be skipped (QAPI, "guest-sync-delimited").
func (c *Client) step() error {
	if c.inStep {
		return nil
	}
	id := rand.Int64N(1 << 53) //nolint:gosec // no secret: it only has to differ from the ids of calls before
	if _, err := c.conn.Write([]byte{delimiter}); err != nil {
		return ended(err)
	}
	if err := c.send("guest-sync-delimited", map[string]any{"id": id}); err != nil {
		return err
	}
	for { // an earlier client's answers may come first
		if err := c.in.skip(); err != nil {
			return err
		}
		line, err := c.in.line()
		if err != nil {
			return err
		}
		var got int64
		if read(line, &got) == nil && got == id {
			c.inStep = true
			return nil
		}
	}
}

// send writes a command.
func (c *Client) send(command string, arguments any) error {
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return fault.New(fault.Invalid, "arguments: %w", err)
	}
	if _, err := c.conn.Write(append(text, '\n')); err != nil {
		return ended(err)
	}
	return nil
}

// answer is a line from the agent.
type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// read understands an answer.
func read(line []byte, result any) error {
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return fault.New(fault.Internal, "its answer makes no sense: %w", err)
	}
	switch {
	case a.Error != nil:
		refusal := &Error{Class: Clean(a.Error.Class), Desc: Clean(a.Error.Desc)}
		if refusal.Class == "CommandNotFound" {
			return fault.New(fault.Incompatible, "%w", refusal)
		}
		return fault.New(fault.Conflict, "%w", refusal)
	case a.Return == nil || string(a.Return) == "null": // no command returns null (QAPI: an empty result is {})
		return fault.New(fault.Internal, "its answer has neither a result nor an error")
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(a.Return, result); err != nil {
		return fault.New(fault.Internal, "unexpected result: %w", err)
	}
	return nil
}

// Lost reports whether err means that the connection is of no use any more: it is closed, or the guest floods it. After any other
// error the client may be used on.
func Lost(err error) bool {
	return errors.Is(err, errEnded) || errors.Is(err, errFlood)
}

// The ends of a connection.
var (
	errEnded = errors.New("the connection has ended")
	errFlood = fmt.Errorf("more than %d bytes of an answer, or %d in one call", LineMax, SkipMax)
)
