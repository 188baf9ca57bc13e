//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/guest/memory"
)

// parting is the time between the answer to poweroff or reboot and the deed, so that the answer gets out.
const parting = 100 * time.Millisecond

// serveControl serves the control protocol to each connection of listener.
func (g *guest) serveControl(ctx context.Context, listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() { // ends with its client, at the latest with the guest
			defer func() { _ = conn.Close() }()
			_ = g.serveLines(ctx, conn) // a client that goes away is the normal end
		}()
	}
}

// serveLines answers the requests of one client, one after the other.
func (g *guest) serveLines(ctx context.Context, conn io.ReadWriter) error {
	lines := bufio.NewReaderSize(conn, control.LineMax)
	for ctx.Err() == nil {
		line, err := lines.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) { // skip to the end of what is no request
			line, err = lines.ReadSlice('\n')
		}
		if err != nil {
			return err
		}
		if len(line) <= 2 && len(line) > 0 && (line[0] == '\n' || line[0] == '\r') {
			continue
		}
		request, err := control.ParseRequest(string(line))
		var result any
		if err == nil {
			result, err = g.answer(ctx, request)
		}
		if err != nil {
			result = control.Failure{Error: err.Error()}
		}
		answer, err := control.Answer(request.ID, result)
		if err != nil {
			return err
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// answer does what a request asks for.
func (g *guest) answer(ctx context.Context, r control.Request) (any, error) {
	switch r.Verb {
	case "status":
		return g.status(), allowed(r)
	case "dirty":
		return g.dirty(ctx, r)
	case "checksum":
		if err := allowed(r); err != nil {
			return nil, err
		}
		return g.memory.check()
	case "corrupt":
		if err := allowed(r, "page"); err != nil {
			return nil, err
		}
		page := 0
		if text, given := r.Args["page"]; given {
			var err error
			if page, err = strconv.Atoi(text); err != nil {
				return nil, fmt.Errorf("page %q is no number", text)
			}
		}
		if err := g.memory.corrupt(page); err != nil {
			return nil, err
		}
		return g.status(), nil
	case "disk":
		return disk(r)
	case "net":
		return g.dhcp(ctx, r)
	case "packets":
		return g.packets.answer(r)
	case "seed":
		return seed(r)
	case "poweroff", "reboot":
		if err := allowed(r); err != nil {
			return nil, err
		}
		time.AfterFunc(parting, func() { g.leave(r.Verb == "reboot") })
		return g.status(), nil
	default:
		return nil, fmt.Errorf("%q is unknown; use status, dirty, checksum, corrupt, disk, net, packets, seed, poweroff or reboot", r.Verb)
	}
}

func (g *guest) dirty(ctx context.Context, r control.Request) (any, error) {
	if _, stop := r.Args["stop"]; stop {
		if err := allowed(r, "stop"); err != nil {
			return nil, err
		}
		g.memory.pause()
		return g.status(), nil
	}
	if err := allowed(r, "rate", "set", "pattern"); err != nil {
		return nil, err
	}
	rate, err := control.ParseSize(r.Args["rate"])
	if err != nil {
		return nil, fmt.Errorf("rate: %w", err)
	}
	set, err := control.ParseSize(r.Args["set"])
	if err != nil {
		return nil, fmt.Errorf("set: %w", err)
	}
	pattern, err := memory.ParsePattern(r.Args["pattern"])
	if err != nil {
		return nil, err
	}
	if err := g.memory.start(ctx, set, rate, pattern); err != nil {
		return nil, err
	}
	return g.status(), nil
}

// allowed refuses a request with a key it does not know.
func allowed(r control.Request, keys ...string) error {
next:
	for key := range r.Args {
		for _, known := range keys {
			if key == known {
				continue next
			}
		}
		return fmt.Errorf("%s does not know %q; it knows %q", r.Verb, key, keys)
	}
	return nil
}

// status says how the guest is.
func (g *guest) status() control.Status {
	return control.Status{
		Boot: g.boot, UptimeMS: time.Since(g.started).Milliseconds(), Heartbeat: g.heartbeat.Load(),
		IP: g.address(""), Kernel: g.kernel, UEFI: g.uefi, Dirty: g.memory.status(),
	}
}
