package gate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

// kill kills a role's process on the host and waits until another answers in its place.
func kill(t *testing.T, h *lab.Host, role string) {
	t.Helper()
	pid, err := h.PID(step(t), role)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WaitOther(step(t), role, pid); err != nil {
		t.Fatal(err)
	}
}

// The story: whatever of Godwit dies or is restarted under a running VM, the VM stays in its process, its memory and its TCP
// connection live on, and what came back can do everything again.
func TestRestarts(t *testing.T) {
	f := takeOff(t)
	atRest := []struct {
		name string
		lose bool // packets may be lost: the switch itself is away for a while
		do   func(t *testing.T, here, there *lab.Host)
	}{
		{"agent killed", false, func(t *testing.T, here, _ *lab.Host) { kill(t, here, "agent") }},
		{"store killed", false, func(t *testing.T, _, _ *lab.Host) { kill(t, f.Hosts[0], "store") }},
		{"switch killed", true, func(t *testing.T, here, _ *lab.Host) { kill(t, here, "switch") }},
		{"switch of the client and the target killed", true, func(t *testing.T, _, there *lab.Host) { kill(t, there, "switch") }},
		{"host down and up", true, func(t *testing.T, here, _ *lab.Host) {
			if err := here.Down(); err != nil {
				t.Fatal(err)
			}
			if err := here.Up(step(t)); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, c := range atRest {
		t.Run(c.name, func(t *testing.T) {
			here, there := f.here(t)
			before := f.info(t)
			c.do(t, here, there)
			f.allUp(t)
			if c.lose {
				f.forgive(t)
			}
			f.healthy(t, here)
			f.sameProcess(t, before)
			f.console(t, here)
			f.moves(t)
		})
	}
}

// forgive takes the packets that were lost so far into account, once the TCP stream flows again.
func (f *flight) forgive(t *testing.T) {
	t.Helper()
	bytes := f.probes.Seen().Bytes
	if err := lab.Until(t.Context(), stepMax, func() error {
		seen := f.probes.Seen()
		if seen.Err == nil && seen.Bytes <= bytes {
			return fmt.Errorf("tcp stream: no byte since the first %d", bytes)
		}
		return seen.Err
	}); err != nil {
		t.Fatal(err)
	}
	f.lost = f.probes.Settle(step(t)).Lost
}

// console types into the guest's serial console and demands an answer.
func (f *flight) console(t *testing.T, h *lab.Host) {
	t.Helper()
	ctx, done := context.WithCancel(step(t))
	defer done()
	cmd := h.Interactive(ctx, "vm", "console", vmName)
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := &transcript{changed: make(chan struct{}, 1)}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if _, err := io.WriteString(input, "status\n"); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(said.String(), "boot "+f.boot) {
		select {
		case <-said.changed:
		case err := <-ended:
			t.Fatalf("the console ended: %v\n%s", err, said)
		case <-ctx.Done():
			t.Fatalf("the console does not answer; it said:\n%s", said)
		}
	}
	if _, err := input.Write([]byte{0x1d}); err != nil { // Ctrl-], the key that leaves it
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("leaving the console: %v\n%s", err, said)
	}
}

// transcript collects what a process says.
type transcript struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

// Write implements io.Writer.
func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.text.Write(b)
}

// String returns all that was said.
func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}
