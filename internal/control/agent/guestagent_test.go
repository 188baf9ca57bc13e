package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// inGuest plays qemu-guest-agent in a guest, on a unix socket; the real one is in the gate tests. Its switches may be turned at any time.
type inGuest struct {
	t     *testing.T
	path  string
	ports chan bool

	mu     sync.Mutex
	frozen bool
	mad    string // said instead of an answer
	thaws  int
	asked  []string
	change chan struct{} // closed and replaced at every command
}

func newInGuest(t *testing.T) *inGuest {
	t.Helper()
	in := &inGuest{t: t, path: filepath.Join(t.TempDir(), "agent.sock"), ports: make(chan bool), change: make(chan struct{})}
	l, err := net.Listen("unix", in.path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			in.serve(conn) // one client at a time, as QEMU
			conn.Close()
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return in
}

func (in *inGuest) serve(conn net.Conn) {
	decoder := json.NewDecoder(stripped{conn})
	for {
		var c struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if decoder.Decode(&c) != nil {
			return
		}
		if _, err := conn.Write([]byte(in.answer(c.Execute, c.Arguments.ID))); err != nil {
			return
		}
	}
}

// stripped leaves the byte 0xFF out.
type stripped struct{ net.Conn }

func (s stripped) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	return copy(b, bytes.ReplaceAll(b[:n], []byte{0xff}, nil)), err
}

func (in *inGuest) answer(command string, id int64) string {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.asked = append(in.asked, command)
	close(in.change)
	in.change = make(chan struct{})
	result := func(v any) string { return fmt.Sprintf("{\"return\": %v}\n", v) }
	switch {
	case command == "guest-sync-delimited":
		return "\xff" + result(id)
	case command == "guest-ping":
		return result("{}")
	case command == "guest-fsfreeze-status":
		return result(map[bool]string{true: `"frozen"`, false: `"thawed"`}[in.frozen])
	case command == "guest-fsfreeze-freeze":
		in.frozen = true
		return result(1)
	case command == "guest-fsfreeze-thaw":
		was := in.frozen
		in.frozen = false
		in.thaws++
		return result(map[bool]int{true: 1}[was])
	case in.mad != "":
		return in.mad
	case in.frozen:
		return `{"error": {"class": "CommandNotFound", "desc": "disabled while frozen"}}` + "\n"
	case command == "guest-info":
		return result(`{"version": "7.2.22"}`)
	case command == "guest-get-host-name":
		return result(`{"host-name": "web\u001b[31m-1"}`)
	case command == "guest-get-osinfo":
		return `{"error": {"class": "CommandNotFound", "desc": "The command guest-get-osinfo has not been found"}}` + "\n"
	case command == "guest-network-get-interfaces":
		return result(`[{"name": "eth0", "hardware-address": "52:54:00:00:00:01", "ip-addresses": [{"ip-address": "10.0.0.7", "prefix": 24}]}]`)
	}
	return `{"error": {"class": "CommandNotFound", "desc": "no"}}` + "\n"
}

// until waits for a command after which ok holds.
func (in *inGuest) until(what string, ok func() bool) {
	in.t.Helper()
	end := time.After(20 * time.Second)
	for {
		in.mu.Lock()
		holds, change := ok(), in.change
		in.mu.Unlock()
		if holds {
			return
		}
		select {
		case <-change:
		case <-end:
			in.t.Fatalf("not %s: it was asked %v", what, in.asked)
		}
	}
}

func (in *inGuest) set(change func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	change()
}

// line begins the line to the guest and ends it with the test, or by end.
func (in *inGuest) line(open bool) (g *guestAgent, end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	g = newGuestAgent(in.path, func(context.Context) (bool, <-chan bool, error) { return open, in.ports, nil }, slog.New(slog.DiscardHandler))
	var running sync.WaitGroup
	running.Go(func() { g.run(ctx) })
	end = func() { cancel(); running.Wait() }
	in.t.Cleanup(end)
	return g, end
}

// knows waits until the line knows what is wanted of the guest.
func knows(t *testing.T, g *guestAgent, ok func(inventory.Guest) bool) inventory.Guest {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // memory of another goroutine: no event tells
		if known := g.read(); ok(known) {
			return known
		} else if time.Now().After(end) {
			t.Fatalf("it knows %+v", known)
		}
	}
}

func there(g inventory.Guest) bool { return g.Agent }

func TestAGuestIsAskedWhileItsPortIsOpen(t *testing.T) {
	in := newInGuest(t)
	g, _ := in.line(false)
	if err := g.shutdown(t.Context()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "install qemu-guest-agent") {
		t.Error(err)
	}
	in.ports <- true
	known := knows(t, g, there)
	if got := fmt.Sprint(known.Version, known.Hostname, known.System, known.NICs); got != "7.2.22web [31m-1[{eth0 52:54:00:00:00:01 [10.0.0.7/24]}]" {
		t.Error(got)
	}
	in.ports <- false // the guest goes down
	knows(t, g, func(g inventory.Guest) bool { return !g.Agent && g.NICs == nil && g.Version == "" })
	in.set(func() { in.asked = nil })
	in.ports <- true // and comes up again
	knows(t, g, there)
	in.until("asked for all again", func() bool { return strings.Contains(strings.Join(in.asked, " "), "guest-info") })
}

func TestAGuestThatTalksNonsenseIsNotThere(t *testing.T) {
	for _, mad := range []string{"nonsense\n", `{"return": {"a": []}}` + "\n", `{"return": null}` + "\n", strings.Repeat("x", 1<<20)} {
		in := newInGuest(t)
		in.set(func() { in.mad = mad })
		g, end := in.line(true)
		in.until("asked twice", func() bool { return len(in.asked) > 4 })
		if known := g.read(); known.Agent || known.NICs != nil {
			t.Errorf("%.20q: it knows %+v", mad, known)
		}
		end()
	}
}

func TestAFreezeEndsByThaw(t *testing.T) {
	in := newInGuest(t)
	g, _ := in.line(true)
	knows(t, g, there)
	if n, err := g.freeze(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := g.freeze(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if err := g.thaw(t.Context()); err != nil {
		t.Error(err)
	}
	if err := g.thaw(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("thawed twice: %v", err)
	}
	in.set(func() {
		if in.frozen || in.thaws != 1 {
			t.Errorf("frozen %v after %d thaws", in.frozen, in.thaws)
		}
	})
	knows(t, g, there)
}

func TestTheGuardThawsWhatNobodyDoes(t *testing.T) {
	in := newInGuest(t)
	g, _ := in.line(true)
	knows(t, g, there)
	if _, err := g.freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.frozen = time.Now().Add(-time.Second) // as if frozenMax had passed
	g.mu.Unlock()
	g.nudge()
	in.until("thawed", func() bool { return !in.frozen })
	if err := g.thaw(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("the snapshot would be taken for a consistent one: %v", err)
	}
}

// An agent that ends thaws; one that was killed leaves it to the next, and so does the host that a frozen VM came from.
func TestAFreezeDoesNotOutliveItsAgent(t *testing.T) {
	in := newInGuest(t)
	g, end := in.line(true)
	knows(t, g, there)
	if _, err := g.freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	end()
	in.set(func() {
		if in.frozen {
			t.Error("the agent ended and left it frozen")
		}
		in.frozen = true // as a killed one would
	})
	g, _ = in.line(true)
	in.until("thawed by the next", func() bool { return !in.frozen })
	knows(t, g, there)
}
