package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// ErrRefused is what a guest's refusal wraps; the text is the guest's own.
var ErrRefused = errors.New("guest refused")

// Client speaks the protocol over one connection. One goroutine may use it at a time. After an error other than ErrRefused the
// connection is in an unknown state: close it and dial anew.
type Client struct {
	conn    io.ReadWriteCloser
	answers *bufio.Reader
	id      uint64 // of the latest request
}

// strayMax bounds the answers to somebody else's requests that a call skips: a serial port may still hold those of its last user.
const strayMax = 64

// NewClient returns a client over conn, which it owns from now on: a TCP connection to Port, or the unix socket of the
// virtio-serial port. A conn with deadlines (a net.Conn) makes calls end with their context; with another conn they end
// when it is closed.
func NewClient(conn io.ReadWriteCloser) *Client {
	// The first id is random, so that an answer meant for the port's last user is not taken for ours.
	return &Client{conn: conn, answers: bufio.NewReaderSize(conn, LineMax), id: uint64(rand.Uint32())}
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Status asks how the guest is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, "status", &s)
}

// DirtyOptions says what the guest shall do with its memory.
type DirtyOptions struct {
	Rate    int64  // bytes per second; 0 fills the set and then writes nothing
	Set     int64  // bytes of the working set, at least a page
	Pattern string // "sequential" or "random"; empty means random
}

// Dirty makes the guest write; a running writer and its region are replaced. It returns when the set is filled, which takes an emulated
// guest about a second per 100 MiB.
func (c *Client) Dirty(ctx context.Context, o DirtyOptions) (Status, error) {
	line := "dirty rate=" + FormatSize(o.Rate) + " set=" + FormatSize(o.Set)
	if o.Pattern != "" {
		line += " pattern=" + o.Pattern
	}
	var s Status
	return s, c.call(ctx, line, &s)
}

// Stop ends the writer; the region stays as it is and can be checked.
func (c *Client) Stop(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, "dirty stop", &s)
}

// Checksum verifies the whole region, page by page, while a running writer runs on. It takes an emulated guest about a second per 100 MiB.
func (c *Client) Checksum(ctx context.Context) (Checksum, error) {
	var s Checksum
	return s, c.call(ctx, "checksum", &s)
}

// Corrupt flips one bit of a page, as a lost write would, so that a test can see Checksum fail. A running writer may
// heal it by rewriting the page: stop it first.
func (c *Client) Corrupt(ctx context.Context, page int) (Status, error) {
	var s Status
	return s, c.call(ctx, fmt.Sprintf("corrupt page=%d", page), &s)
}

// PowerOff makes the guest turn itself off; it answers before it goes.
func (c *Client) PowerOff(ctx context.Context) error {
	var s Status
	return c.call(ctx, "poweroff", &s)
}

// Reboot makes the guest restart itself; it answers before it goes.
func (c *Client) Reboot(ctx context.Context) error {
	var s Status
	return c.call(ctx, "reboot", &s)
}

// call sends a line and reads the answer into result.
func (c *Client) call(ctx context.Context, line string, result any) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("guest %s: %w", line, err)
	}
	if conn, ok := c.conn.(interface{ SetDeadline(time.Time) error }); ok {
		// A deadline in the past wakes the blocked read. It is cleared afterwards, and not before it was set.
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(woken)
			_ = conn.SetDeadline(time.Unix(1, 0)) // a connection that refuses is closed, and the read has ended
		})
		defer func() {
			if !stop() {
				<-woken
			}
			_ = conn.SetDeadline(time.Time{}) // as above
		}()
	}
	err := c.exchange(line, result)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("guest %s: %w", line, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("guest %s: %w", line, err)
	}
	return nil
}

func (c *Client) exchange(line string, result any) error {
	c.id++
	// The empty line ends what the port's last user may have left unfinished; the guest ignores it otherwise.
	if _, err := fmt.Fprintf(c.conn, "\n%s id=%d\n", line, c.id); err != nil {
		return err
	}
	for range strayMax {
		answer, err := c.answers.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("answer is longer than %d bytes", LineMax)
		}
		if err != nil {
			return err
		}
		var head struct {
			ID    uint64 `json:"id"`
			Error string `json:"error"`
		}
		if json.Unmarshal(answer, &head) != nil || head.ID != c.id {
			continue // torn, or not for us
		}
		if head.Error != "" {
			return fmt.Errorf("%w: %s", ErrRefused, head.Error)
		}
		return json.Unmarshal(answer, result)
	}
	return fmt.Errorf("%d answers, none to this request", strayMax)
}
