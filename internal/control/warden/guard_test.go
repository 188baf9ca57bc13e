package warden

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// kernel is a machine's VMs and its watchdog, in a bubble's time.
type kernel struct {
	boot  time.Time
	ring  chan struct{}
	wake  *time.Timer
	wakes authority.Moment

	mu       sync.Mutex
	vms      map[string]*host.Cgroup
	stubborn map[string]bool // in the kernel's hands: no signal reaches them
	slow     time.Duration   // that a list takes
	listed   time.Time       // when a list began last
	oldest   time.Duration   // between that and a feeding
	blind    error           // the cgroups cannot be listed
	did      []string        // freeze, thaw, kill, with the second
	armed    bool
	fed      time.Time
	resets   []time.Duration // when the watchdog fired
	timeout  time.Duration
	timer    *time.Timer
	opens    int
	refuse   error // of Open
	full     error // of Feed
	feeds    int
	late     time.Duration // that the alarm comes later than it is set
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
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wake != nil {
		k.wake.Stop()
	}
	k.wakes = at + k.late
	k.wake = time.AfterFunc(at-k.now()+k.late, func() {
		select {
		case k.ring <- struct{}{}:
		default:
		}
	})
	return nil
}

func (k *kernel) List(into []host.Cgroup) ([]host.Cgroup, error) {
	k.mu.Lock()
	slow := k.slow
	k.listed = time.Now()
	k.mu.Unlock()
	time.Sleep(slow)
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
	k.oldest = max(k.oldest, time.Since(k.listed))
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
	if k.feeds++; k.full != nil {
		return k.full
	}
	k.fed = time.Now()
	k.oldest = max(k.oldest, time.Since(k.listed))
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
		machine: from, groups: k, watchdog: k, timeout: k.timeout, clock: clock{k.now, k.ring, k.setAt}, complaints: map[string]string{}, hidden: map[authority.VM]bool{}, log: newDiary(slog.New(slog.NewTextHandler(t.Output(), nil))),
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

// The story: the warden stands still for longer than the authority that it knows of, and the agent renews all the while. What it has to say comes
// a moment after the warden is awake again, and is heard before anything is killed. An agent that has nothing to say is dead or without authority.
func TestAWardenThatStoodStillListensFirst(t *testing.T) {
	for _, speaks := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			k := newKernel("vm-a")
			k.refuse = errors.New("no watchdog") // which would not wait
			_, agent := guarded(t, k, fresh())
			k.mu.Lock()
			k.late = 20 * time.Second
			k.mu.Unlock()
			must(t, agent.Authority(ctx, 0, k.now()+8*time.Second), agent.VM(ctx, "vm-a", authority.LeaseArbitrates, false))
			synctest.Wait()
			k.mu.Lock()
			k.late = 0
			wakes := k.wakes
			k.mu.Unlock()
			time.Sleep(wakes - k.now() - time.Millisecond)
			// What is heard first is not what counts.
			must(t, agent.VM(ctx, "vm-b", authority.LeaseArbitrates, true), agent.Authority(ctx, 0, k.now()-time.Second))
			time.Sleep(11 * time.Millisecond)
			if speaks {
				must(t, agent.Authority(ctx, 0, k.now()+8*time.Second))
			}
			time.Sleep(time.Second)
			if did, _ := k.seen(); len(did) == 0 != speaks {
				t.Errorf("the agent speaks: %v, and it did %q", speaks, did)
			}
		})
	}
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

// The story: the agent is away, and so is the store. Whoever stops the VMs then does not know whose storage arbitrates, and takes nothing of what the
// warden knows: when the host was fenced meanwhile, the VM that could run nowhere else lives on.
func TestStandingLeavesTheArbiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-lease", "vm-new", "vm-storage")
		g, agent := guarded(t, k, fresh())
		must(t, agent.Authority(ctx, 0, k.now()+8*time.Second), agent.VM(ctx, "vm-lease", authority.LeaseArbitrates, false),
			agent.VM(ctx, "vm-storage", authority.StorageArbitrates, false))
		standby := agentOf(g)
		must(t, standby.Stands(ctx, "vm-lease"), standby.Stands(ctx, "vm-new"), standby.Stands(ctx, "vm-storage"))
		time.Sleep(time.Minute)
		if did, _ := k.seen(); !slices.Equal(did, []string{"freeze vm-lease at 5s", "freeze vm-new at 5s"}) {
			t.Errorf("it did %q", did)
		}
		must(t, standby.Authority(ctx, 1, k.now()+8*time.Second))
		time.Sleep(time.Second)
		if did, _ := k.seen(); !slices.Equal(did[2:], []string{"kill vm-lease at 1m0s", "kill vm-new at 1m0s"}) {
			t.Errorf("after the fence it did %q", did[2:])
		}
	})
}

// The story: a QEMU is in the kernel's hands and does not die. The watchdog is not fed any more, and resets the machine before the lease is over.
func TestWhatDoesNotDieResetsTheMachine(t *testing.T) {
	for story, hinder := range map[string]func(*kernel){
		"a kill does nothing":         func(k *kernel) { k.stubborn["vm-a"] = true },
		"the kernel does not list":    func(k *kernel) { k.blind = errors.New("no") },
		"the kernel says nothing":     func(k *kernel) { k.vms["vm-a"].Err, k.stubborn["vm-a"] = errors.New("no"), true },
		"a freeze of one does not do": func(k *kernel) { k.stubborn["vm-b"] = true },
	} {
		t.Run(story, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				k := newKernel("vm-a", "vm-b")
				_, agent := guarded(t, k, fresh())
				must(t, agent.Authority(ctx, 0, k.now()+8*time.Second), agent.VM(ctx, "vm-b", authority.LeaseArbitrates, true))
				k.mu.Lock()
				hinder(k)
				k.mu.Unlock()
				time.Sleep(8 * time.Second)
				if _, resets := k.seen(); len(resets) != 1 || resets[0] > 7500*time.Millisecond || resets[0] < 5*time.Second {
					t.Errorf("the machine was reset at %v", resets)
				}
				k.mu.Lock()
				defer k.mu.Unlock()
				k.blind, k.stubborn = nil, nil
			})
		})
	}
}

// The story: authority is over, and a VM frozen. Then a look takes its time, or this process stands still in it. What it has seen is old by then and
// feeds nothing; the next look is in time.
func TestAnOldProofFeedsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-a")
		_, agent := guarded(t, k, fresh())
		must(t, agent.Authority(ctx, 0, k.now()+8*time.Second), agent.VM(ctx, "vm-a", authority.LeaseArbitrates, true))
		time.Sleep(10 * time.Second)
		k.mu.Lock()
		k.slow, k.oldest = 1200*time.Millisecond, 0
		k.mu.Unlock()
		time.Sleep(time.Second)
		k.mu.Lock()
		k.slow = 0
		k.mu.Unlock()
		time.Sleep(time.Minute)
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.oldest > authority.ProofMax || k.fed.Sub(k.boot) < time.Minute {
			t.Errorf("it was fed by a proof that was %v old, and last at %v", k.oldest, k.fed.Sub(k.boot))
		}
		if len(k.resets) > 0 {
			t.Errorf("reset at %v, although the next proof was in time", k.resets)
		}
	})
}

// The story: a watchdog takes no food any more, and resets nothing either. It is tried for as long as it may take to fire, at its pace, and is none then;
// one that works again is one again.
func TestAWatchdogThatDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-a")
		_, agent := guarded(t, k, fresh())
		must(t, agent.VM(ctx, "vm-a", authority.LeaseArbitrates, false), agent.Authority(ctx, 0, k.now()+time.Hour))
		time.Sleep(10 * time.Second)
		k.mu.Lock()
		k.full, k.feeds = errors.New("no such device"), 0
		k.timer.Stop()
		k.mu.Unlock()
		time.Sleep(2 * time.Second)
		if f := agent.Fencing(); f != inventory.FencedByWatchdog {
			t.Errorf("it may still fire, and the host is fenced by %q", f)
		}
		time.Sleep(time.Second)
		k.mu.Lock()
		if k.armed || k.feeds > 20 {
			t.Errorf("it is armed: %v, and was fed %d times in 3 s", k.armed, k.feeds)
		}
		k.full = nil
		k.mu.Unlock()
		if f := agent.Fencing(); f != inventory.FencedByNobody {
			t.Errorf("then it is fenced by %q", f)
		}
		time.Sleep(openEvery + time.Second)
		if f := agent.Fencing(); f != inventory.FencedByWatchdog {
			t.Errorf("with a watchdog that works again it is fenced by %q", f)
		}
	})
}

// The story: authority is over, a VM frozen, and there was no watchdog so far. A look takes its time, and what it has seen is old by then. It opens no
// watchdog: to open one is to feed it.
func TestAnOldProofOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-a")
		k.refuse = errors.New("no such device yet")
		_, agent := guarded(t, k, fresh())
		must(t, agent.Authority(ctx, 0, k.now()+8*time.Second), agent.VM(ctx, "vm-a", authority.LeaseArbitrates, true))
		time.Sleep(10 * time.Second)
		k.mu.Lock()
		k.slow, k.oldest, k.refuse = 1200*time.Millisecond, 0, nil
		k.mu.Unlock()
		time.Sleep(2 * openEvery)
		k.mu.Lock()
		if k.armed {
			t.Errorf("it was opened by a proof that was %v old", k.oldest)
		}
		k.slow = 0
		k.mu.Unlock()
		time.Sleep(2 * openEvery)
		k.mu.Lock()
		defer k.mu.Unlock()
		if !k.armed || k.oldest > authority.ProofMax {
			t.Errorf("it is armed: %v, by a proof that was %v old", k.armed, k.oldest)
		}
	})
}

// The story: godwit is ended in order. When the store knows that nobody can fence the host, its VMs run on without a warden; when it does not, the
// warden stays until the authority is over and they are dead. The watchdog is off at the end both times.
func TestEndingInOrder(t *testing.T) {
	for story, c := range map[string]struct {
		unwatched bool
		again     bool // and then the agent renewed once more
		want      time.Duration
	}{
		"the store knows":              {true, false, 0},
		"the store does not":           {false, false, 5 * time.Second},
		"the store knows another word": {true, true, 5 * time.Second},
	} {
		t.Run(story, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				k := newKernel("vm-a")
				g, agent := guarded(t, k, fresh())
				must(t, agent.Authority(ctx, 0, k.now()+8*time.Second))
				if c.unwatched {
					must(t, agent.Unwatched(ctx))
				}
				if c.again {
					must(t, agent.Authority(ctx, 0, k.now()+8*time.Second))
				}
				began := time.Now()
				g.end()
				k.mu.Lock()
				defer k.mu.Unlock()
				if took := time.Since(began); took < c.want || took > c.want+100*time.Millisecond || k.armed || k.vms["vm-a"].Populated != (c.want == 0) {
					t.Errorf("it took %v; the watchdog is armed: %v; the VM lives: %v", took, k.armed, k.vms["vm-a"].Populated)
				}
			})
		})
	}
}

// The story: the log's reader stands still, and so does whoever reads the agent's line. VMs end all the same.
func TestNobodyIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel("vm-a")
		g := &guard{
			machine: fresh(), groups: k, clock: clock{k.now, k.ring, k.setAt}, complaints: map[string]string{}, hidden: map[authority.VM]bool{},
			log: newDiary(slog.New(slog.DiscardHandler)), words: make(chan word, wordsMax), over: make(chan struct{}),
		}
		g.said.Store(&hello{})
		ours, theirs, err := socketPair()
		must(t, err)
		defer func() { must(t, ours.Close(), theirs.Close()) }()
		e := &ear{func(text string) { _ = sendNow(ours, text) }}
		for err == nil { // until the line takes no more
			err = sendNow(ours, tellsOK)
		}
		g.greet(e)
		go g.run() // and nobody runs its diary
		for i := range 2 * diaryMax {
			g.log.say(slog.LevelInfo, "line", slog.Int("n", i))
		}
		g.send(word{from: e, text: "authority 1 0 " + momentWord(k.now()+8*time.Second)})
		time.Sleep(6 * time.Second)
		if did, _ := k.seen(); !slices.Equal(did, []string{"kill vm-a at 5s"}) {
			t.Errorf("it did %q", did)
		}
		g.end()
		k.wake.Stop()
	})
}

// What an agent says that nobody understands is refused, with the reason, and changes nothing; an agent that has ended is not heard.
func TestWordsThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel()
		g, first := guarded(t, k, fresh())
		for text, want := range map[string]string{
			"authority x y":    `fences`,
			"authority 1":      "takes 2 arguments, not 1",
			"authority 1 -5":   `moment "-5"`,
			"shorten soon":     `moment "soon"`,
			"vm vm-a me runs":  `arbiter "me"`,
			"vm vm-a lease up": `state "up"`,
			"gone":             "takes 1 arguments, not 0",
		} {
			what, args, _ := strings.Cut(text, " ")
			if err := first.ask(ctx, answerMax, what, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, without %q", text, err, want)
			}
		}
		for range wantersMax {
			go func() { _ = first.Cleared(ctx) }() // ends with the bubble's agent
		}
		synctest.Wait()
		if err := first.Cleared(ctx); !fault.Is(err, fault.NoResources) || !strings.Contains(err.Error(), "too many wait") {
			t.Errorf("one more waits for it to be clear: %v", err)
		}
		must(t, first.Authority(ctx, 0, k.now()+8*time.Second))
		second := agentOf(g)
		if fences, until := second.Left(); fences != 0 || until != k.now()+8*time.Second {
			t.Errorf("the next agent is told of %d, %v", fences, until)
		}
		if err := first.Shorten(ctx, k.now()); err == nil {
			t.Error("an agent that has ended is heard")
		}
		if err := second.Authority(ctx, 0, k.now()+8*time.Second); err != nil {
			t.Error(err)
		}
	})
}

// The story: a QEMU has got no cgroup of its own, so nobody could end it by one. On a host with a watchdog it may not run; on one without it may, and
// then no watchdog is armed until it is gone. Storage that arbitrates needs none of that.
func TestWhatCannotBeEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		k := newKernel("vm-a")
		_, agent := guarded(t, k, fresh())
		must(t, agent.VM(ctx, "vm-early", authority.LeaseArbitrates, false), agent.Authority(ctx, 0, k.now()+time.Hour))
		time.Sleep(time.Minute)
		if k.opens > 0 || agent.Fencing() != inventory.FencedByNobody {
			t.Errorf("the watchdog was opened %d times, and it is fenced by %q", k.opens, agent.Fencing())
		}
		must(t, agent.Gone(ctx, "vm-early"), agent.VM(ctx, "vm-a", authority.LeaseArbitrates, false), agent.VM(ctx, "vm-far", authority.StorageArbitrates, false))
		time.Sleep(time.Minute)
		if agent.Fencing() != inventory.FencedByWatchdog {
			t.Errorf("it is fenced by %q", agent.Fencing())
		}
		must(t, agent.VM(ctx, "vm-late", authority.LeaseArbitrates, true)) // it stands
		if err := agent.VM(ctx, "vm-late", authority.LeaseArbitrates, false); err == nil || !strings.Contains(err.Error(), "no cgroup of its own") || !fault.Is(err, fault.Incompatible) {
			t.Errorf("it may run: %v", err)
		}
		synctest.Wait()
		if agent.Fencing() != inventory.FencedByNobody {
			t.Errorf("somebody may run it all the same, and it is fenced by %q", agent.Fencing())
		}
	})
}

// A nil line, of an agent that was started by hand, says nothing and waits for nobody.
func TestNobodyToTell(t *testing.T) {
	var l *Line
	ctx := t.Context()
	must(t, l.Authority(ctx, 1, 2), l.Shorten(ctx, 1), l.GiveUp(ctx), l.VM(ctx, "vm-a", authority.LeaseArbitrates, true), l.Gone(ctx, "vm-a"), l.Cleared(ctx), l.Unwatched(ctx))
	if fences, until := l.Left(); fences != 0 || until != 0 || l.Fencing() != inventory.FencedByNobody {
		t.Errorf("it knows of %d, %v, %q", fences, until, l.Fencing())
	}
}

// What a guard knows is in its file, whole, and the next guard of this boot begins there; one of another boot does not.
func TestNotes(t *testing.T) {
	dir, s := t.TempDir(), authority.Default()
	n, m, _, err := readNotes(dir, "boot-1", s)
	if err != nil || m.Until != 0 || m.Over {
		t.Fatalf("%+v, %v", m, err)
	}
	m.Told(7, 123456789*time.Nanosecond, nil)
	m.VM("vm-a", authority.LeaseArbitrates, true)
	m.VM("vm-b", authority.StorageArbitrates, false)
	m.Doom("vm-c")
	must(t, n.keep(m, map[authority.VM]bool{"vm-d": true}))
	_, next, hidden, err := readNotes(dir, "boot-1", s)
	if err != nil || next.Fences != 7 || next.Until != 123456789 || next.Over || !slices.Equal(next.Doomed(), []authority.VM{"vm-c"}) ||
		next.Knows("vm-a") != (authority.WardenVM{Arbiter: authority.LeaseArbitrates, Stopped: true}) || !slices.Equal(next.VMs(), []authority.VM{"vm-a", "vm-b"}) || len(hidden) != 1 || !hidden["vm-d"] {
		t.Errorf("%+v, %v", next, err)
	}
	m.GivenUp(nil)
	must(t, n.keep(m, map[authority.VM]bool{"vm-d": true}))
	if _, next, _, err = readNotes(dir, "boot-1", s); err != nil || !next.Over || next.Until != 0 {
		t.Errorf("%+v, %v", next, err)
	}
	if _, next, hidden, err = readNotes(dir, "boot-2", s); err != nil || next.Over || next.Fences != 0 || len(hidden) > 0 {
		t.Errorf("in another boot it is %+v, %v", next, err)
	}
	// The folder is full, as far as this file goes: rather none than one of an older state.
	must(t, os.Mkdir(filepath.Join(dir, notesFile+".new"), 0o700))
	m.Told(8, time.Hour, nil)
	if err := n.keep(m, nil); err == nil {
		t.Error("it was written into a folder")
	}
	if _, next, _, err = readNotes(dir, "boot-1", s); err != nil || next.Over || next.Fences != 0 {
		t.Errorf("after that it is %+v, %v", next, err)
	}
	must(t, os.Remove(filepath.Join(dir, notesFile+".new")), n.keep(m, nil))
	if _, next, _, err = readNotes(dir, "boot-1", s); err != nil || next.Fences != 8 {
		t.Errorf("and when there is room again %+v, %v", next, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, notesFile), []byte("boot boot-1\nuntil soon\n"), 0o600))
	if _, next, _, err = readNotes(dir, "boot-1", s); err == nil || next.Until != 0 {
		t.Errorf("a torn file is read as %+v, %v", next, err)
	}
}
