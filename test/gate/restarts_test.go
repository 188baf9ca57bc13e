package gate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/test/lab"
)

// restartsWanted is how often each role is killed.
const restartsWanted = 20

// The story: whatever of Godwit dies, hangs or is restarted under a running VM, the VM stays in its process, its memory and its TCP
// connection live on, and what came back can do everything again.
func TestRestarts(t *testing.T) {
	t.Parallel()
	f := takeOff(t)
	here, there := f.here(t)
	restartEach(t, here, f.vm, f.tcp)
	t.Run("switch of the target killed", func(t *testing.T) { restart{Host: there}.replace(t, syscall.SIGKILL, "switch") })
	t.Run("host down and up", func(t *testing.T) {
		if err := here.Down(); err != nil {
			t.Fatal(err)
		}
		if err := here.Up(step(t)); err != nil {
			t.Fatal(err)
		}
	})
	f.allUp(t)
	f.forgive(t)
	f.healthy(t, here)
	f.console(t, here)
	f.moves(t)
}

// tcp returns how many bytes the guest's TCP stream has brought, all exact, or how it broke.
func (f *flight) tcp() (bytes uint64, err error) {
	seen := f.probes.Seen()
	return seen.Bytes, seen.Err
}

// restartEach kills each role of the VM's host 20 times, stops each, so that it is silent, kills the warden a few times, and
// lets them all stand still, while the guest writes memory and sends. Each time the VM must stay in its process, and tcp, the bytes of
// a checked stream from the guest, go on. The host must carry the store. The guest's packets may be lost while a switch is away; the
// caller takes them into account.
func restartEach(t *testing.T, h *lab.Host, vm string, tcp func() (uint64, error)) {
	t.Helper()
	r := restart{h, vm, tcp}
	for _, roles := range [][]string{{"agent"}, {"switch", "store"}} { // the agent needs the others to come back, these two do not
		t.Run(fmt.Sprintf("%s killed %d times", strings.Join(roles, " and "), restartsWanted), func(t *testing.T) {
			began := time.Now()
			for range restartsWanted {
				r.watch(t, func() { r.replace(t, syscall.SIGKILL, roles...) })
			}
			t.Logf("a restart took %v", (time.Since(began) / restartsWanted).Round(time.Millisecond))
		})
	}
	t.Run("all roles hang", func(t *testing.T) {
		r.watch(t, func() { r.replace(t, syscall.SIGSTOP, "agent", "switch", "store") })
	})
	t.Run("warden killed 3 times", func(t *testing.T) {
		for range 3 {
			r.watch(t, func() {
				before := r.pids(t, everyone...)
				if err := h.KillWarden(); err != nil {
					t.Fatal(err)
				}
				r.others(t, before, everyone...)
			})
		}
	})
	t.Run("everything stands still", r.stall)
}

// restart is a host on which things end, and how to see that its VM does not mind.
type restart struct {
	*lab.Host

	vm  string // its id
	tcp func() (bytes uint64, err error)
}

// watch demands that the VM goes on in its process, and its stream with it, whatever do does.
func (r restart) watch(t *testing.T, do func()) {
	t.Helper()
	before := r.QEMUs(r.vm)
	if len(before) != 1 {
		t.Fatalf("%s has QEMU processes %v for one VM", r.Name, before)
	}
	do()
	if after := r.QEMUs(r.vm); !slices.Equal(before, after) {
		t.Fatalf("the VM's process was %v and is %v", before, after)
	}
	bytes, err := r.tcp()
	if err == nil {
		err = lab.Until(step(t), stepMax, func() error {
			now, err := r.tcp()
			if err == nil && now <= bytes {
				return fmt.Errorf("no byte came since the first %d", bytes)
			}
			return err
		})
	}
	if err != nil {
		t.Fatalf("tcp stream: %v", err)
	}
}

// replace sends the signal to the roles and waits until other processes serve in their places.
func (r restart) replace(t *testing.T, signal syscall.Signal, roles ...string) {
	t.Helper()
	before := r.pids(t, roles...)
	for _, pid := range before {
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
	}
	r.others(t, before, roles...)
}

// everyone lists the roles of a host that carries the store, the warden first.
var everyone = []string{"warden", "agent", "switch", "store"}

// pids returns the processes of the roles.
func (r restart) pids(t *testing.T, roles ...string) []int {
	t.Helper()
	var all []int
	for _, role := range roles {
		pid, err := r.PID(step(t), role)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pid)
	}
	return all
}

// others waits until each role is another process than before.
func (r restart) others(t *testing.T, before []int, roles ...string) {
	t.Helper()
	for i, role := range roles {
		if _, err := r.WaitOther(step(t), role, before[i]); err != nil {
			t.Fatal(err)
		}
	}
}

// stall stops the warden and all roles for longer than a role may be silent, as a machine that is paused would. That is nobody's
// fault: they go on as they are.
func (r restart) stall(t *testing.T) {
	r.watch(t, func() {
		before := r.pids(t, everyone...)
		for _, pid := range before {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(3 * time.Second)                   // the length of the pause is the story
		for _, pid := range slices.Backward(before) { // the warden last: it must not see the others stopped
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second) // nobody is killed in the time that a wrong judgement would take
		if after := r.pids(t, everyone...); !slices.Equal(before, after) {
			t.Errorf("processes %v became %v: a pause of the machine is no silence", before, after)
		}
	})
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
