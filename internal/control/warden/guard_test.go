package warden

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// kernel is a machine's VMs and its watchdog, in a bubble's time.
type kernel struct {
	boot time.Time
	ring chan struct{}
	wake *time.Timer

	mu       sync.Mutex
	vms      map[string]*host.Cgroup
	stubborn map[string]bool // in the kernel's hands: no signal reaches them
	blind    error           // the cgroups cannot be listed
	did      []string        // freeze, thaw, kill, with the second
	armed    bool
	fed      time.Time
	resets   []time.Duration // when the watchdog fired
	timeout  time.Duration
	timer    *time.Timer
	opens    int
	refuse   error // of Open
}

func newKernel(vms ...string) *kernel {
	k := &kernel{boot: time.Now(), ring: make(chan struct{}, 1), vms: map[string]*host.Cgroup{}, stubborn: map[string]bool{}, timeout: 2 * time.Second}
	for _, vm := range vms {
		k.vms[vm] = &host.Cgroup{Name: vm, Populated: true}
	}
	return k
}

func (k *kernel) now() authority.Moment { return time.Since(k.boot) + time.Hour }

func (k *kernel) setAt(at authority.Moment) error {
	if k.wake != nil {
		k.wake.Stop()
	}
	k.wake = time.AfterFunc(at-k.now(), func() {
		select {
		case k.ring <- struct{}{}:
		default:
		}
	})
	return nil
}

func (k *kernel) List(into []host.Cgroup) ([]host.Cgroup, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.blind != nil {
		return into, k.blind
	}
	for _, c := range k.vms {
		into = append(into, *c)
	}
	slices.SortFunc(into, func(a, b host.Cgroup) int { return strings.Compare(a.Name, b.Name) })
	return into, nil
}

func (k *kernel) act(what, name string, do func(*host.Cgroup)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.did = append(k.did, what+" "+name+" at "+time.Since(k.boot).String())
	if c := k.vms[name]; c != nil && !k.stubborn[name] {
		do(c)
	}
	return nil
}

func (k *kernel) Freeze(n string) error {
	return k.act("freeze", n, func(c *host.Cgroup) { c.Frozen = true })
}

func (k *kernel) Thaw(n string) error {
	return k.act("thaw", n, func(c *host.Cgroup) { c.Frozen = false })
}

func (k *kernel) Kill(n string) error {
	return k.act("kill", n, func(c *host.Cgroup) { c.Populated = false })
}

func (k *kernel) Open() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.opens++; k.refuse != nil {
		return k.refuse
	}
	k.armed, k.fed = true, time.Now()
	k.timer = time.AfterFunc(k.timeout, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.resets = append(k.resets, time.Since(k.boot))
	})
	return nil
}

func (k *kernel) Feed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fed = time.Now()
	k.timer.Reset(k.timeout)
	return nil
}

func (k *kernel) Disarm() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.armed = false
	k.timer.Stop()
	return nil
}

// seen returns what was done to VMs and when the machine was reset.
func (k *kernel) seen() (did []string, resets []time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.did), slices.Clone(k.resets)
}

// guarded starts a guard over the kernel and returns the agent's line to it.
func guarded(t *testing.T, k *kernel, from authority.Warden) (*guard, *Line) {
	t.Helper()
	g := &guard{
		machine: from, groups: k, watchdog: k, timeout: k.timeout, clock: clock{k.now, k.ring, k.setAt}, log: newDiary(slog.New(slog.NewTextHandler(t.Output(), nil))),
		words: make(chan word, wordsMax), over: make(chan struct{}),
	}
	g.said.Store(&hello{fences: from.Fences, until: from.Until})
	go g.log.run(t.Context())
	go g.run()
	t.Cleanup(func() {
		g.unwatchedEnd()
		g.log.close()
		k.wake.Stop()
	})
	return g, agentOf(g)
}

// unwatchedEnd ends a guard whatever still runs.
func (g *guard) unwatchedEnd() {
	e := &ear{func(string) {}}
	g.agent.Store(e)
	g.send(word{from: e, text: saysUnwatched + " 1"})
	g.end()
}

// agentOf gives a guard a new agent, whose line carries words within the process.
func agentOf(g *guard) *Line {
	l := newLine(nil, slog.New(slog.DiscardHandler))
	e := &ear{}
	e.tell = func(text string) {
		if strings.HasPrefix(text, tellsHello) {
			_ = l.greeted(text)
			return
		}
		l.heard(text)
	}
	l.send = func(text string) error { g.send(word{from: e, text: text}); return nil }
	g.greet(e)
	return l
}

// fresh is a warden of a host that was booted just now.
func fresh() authority.Warden { return authority.NewWarden(authority.Default(), 0, 0) }

// must fails the test for an error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// The story: a host loses the store. Its VM on shared storage that was stopped in time is frozen, the one that was not is killed, the one
// whose storage arbitrates by itself runs on; all that exactly 5 s after the last renewal, and the watchdog is fed throughout.
func TestAuthorityEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-hidden", "vm-runs", "vm-stopped", "vm-storage")
		_, agent := guarded(t, k, fresh())
		must(t,
			agent.VM(ctx, "vm-runs", authority.LeaseArbitrates, false), agent.VM(ctx, "vm-stopped", authority.LeaseArbitrates, false),
			agent.VM(ctx, "vm-storage", authority.StorageArbitrates, false), agent.Authority(ctx, 0, k.now()+8*time.Second), agent.Cleared(ctx))
		synctest.Wait()
		if f := agent.Fencing(); f != inventory.FencedByWatchdog {
			t.Errorf("it is fenced by %q", f)
		}
		time.Sleep(4 * time.Second)
		must(t, agent.VM(ctx, "vm-stopped", authority.LeaseArbitrates, true))
		time.Sleep(time.Minute)
		did, resets := k.seen()
		if want := []string{"kill vm-hidden at 5s", "kill vm-runs at 5s", "freeze vm-stopped at 5s"}; !slices.Equal(did, want) || len(resets) > 0 {
			t.Errorf("it did %q, and the machine was reset at %v", did, resets)
		}
		// The store is back, and nobody has fenced the host meanwhile.
		must(t, agent.Authority(ctx, 0, k.now()+8*time.Second))
		if did, _ := k.seen(); !slices.Equal(did[3:], []string{"thaw vm-stopped at 1m4s"}) {
			t.Errorf("then it did %q", did[3:])
		}
	})
}

// The story: the host was fenced while it was away. Nothing that it had on shared storage may run again, frozen or not, and the agent
// hears when all of that is dead.
func TestAnotherAuthorityKillsWhatWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-a", "vm-b")
		_, agent := guarded(t, k, fresh())
		must(t, agent.Authority(ctx, 0, k.now()+8*time.Second), agent.VM(ctx, "vm-a", authority.LeaseArbitrates, true),
			agent.VM(ctx, "vm-b", authority.StorageArbitrates, false))
		time.Sleep(time.Minute)
		k.mu.Lock()
		k.stubborn["vm-a"] = true
		k.mu.Unlock()
		must(t, agent.Authority(ctx, 1, k.now()+8*time.Second))
		brief, done := context.WithTimeout(ctx, time.Second)
		defer done()
		if err := agent.Cleared(brief); err == nil {
			t.Error("it is clear while vm-a lives")
		}
		k.mu.Lock()
		k.stubborn["vm-a"] = false
		k.mu.Unlock()
		must(t, agent.Cleared(ctx))
		did, resets := k.seen()
		if !slices.Contains(did, "kill vm-a at 1m0s") || slices.ContainsFunc(did, func(s string) bool { return strings.Contains(s, "vm-b") }) || len(resets) > 0 {
			t.Errorf("it did %q, and the machine was reset at %v", did, resets)
		}
	})
}
