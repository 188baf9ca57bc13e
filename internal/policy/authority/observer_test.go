package authority

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// watched is an observer of hosts that renew every second, read every half second.
type watched struct {
	Observer

	now  Moment
	last map[inventory.HostID]inventory.Renewal
	mute map[inventory.HostID]bool
}

func watch(hosts ...inventory.HostID) *watched {
	w := &watched{Observer: NewObserver(Default()), now: time.Hour, last: map[inventory.HostID]inventory.Renewal{}, mute: map[inventory.HostID]bool{}}
	for _, h := range hosts {
		w.last[h] = inventory.Renewal{Host: h, Revision: 1, Lease: w.Settings.Lease, Fencing: inventory.FencedByWatchdog, Epoch: 1}
	}
	w.look()
	return w
}

func (w *watched) look() map[inventory.HostID]Finding {
	var all []inventory.Renewal
	for _, r := range w.last {
		all = append(all, r)
	}
	w.Read(all, w.now)
	found := map[inventory.HostID]Finding{}
	for _, f := range w.Look(w.now) {
		found[f.Host] = f
	}
	return found
}

// pass lets time go by, with the hosts that are not mute renewing.
func (w *watched) pass(d time.Duration) map[inventory.HostID]Finding {
	found := w.look()
	for end := w.now + d; w.now < end; {
		w.now += 500 * ms
		for h, r := range w.last {
			if !w.mute[h] {
				r.Revision++
				w.last[h] = r
			}
		}
		found = w.look()
	}
	return found
}

func want(t *testing.T, found map[inventory.HostID]Finding, host inventory.HostID, standing Standing, why string) {
	t.Helper()
	if f := found[host]; f.Standing != standing || !strings.Contains(f.Why, why) {
		t.Errorf("%s is %s: %q, not %s: %q", host, f.Standing, f.Why, standing, why)
	}
}

func TestObserver(t *testing.T) {
	t.Run("a silent host is fenced after its wait and not before", func(t *testing.T) {
		w := watch("a", "b", "c")
		w.pass(10 * time.Second)
		w.mute["b"] = true
		want(t, w.pass(8*time.Second), "b", Up, "")
		f := w.pass(500 * ms)
		want(t, f, "b", Silent, "silent for 8.5s")
		if f["b"].Revision != w.last["b"].Revision {
			t.Errorf("fences by revision %d, last is %d", f["b"].Revision, w.last["b"].Revision)
		}
		want(t, f, "a", Up, "")
	})
	t.Run("a longer lease is waited for", func(t *testing.T) {
		w := watch("a", "b", "c")
		r := w.last["b"]
		r.Lease = time.Minute
		w.last["b"], w.mute["b"] = r, true
		w.Forget("b")
		f := w.pass(55 * time.Second)
		if want(t, f, "b", Up, ""); f["b"].Still {
			t.Error("a planned restart makes it look silent")
		}
		want(t, w.pass(8*time.Second), "b", Up, "")
		want(t, w.pass(time.Second), "b", Silent, "")
	})
	t.Run("without a watchdog nobody knows", func(t *testing.T) {
		w := watch("a", "b", "c")
		r := w.last["b"]
		r.Fencing, r.Revision = inventory.FencedByNobody, 2
		w.last["b"], w.mute["b"] = r, true
		want(t, w.pass(time.Hour), "b", Blocked, "b cannot be proven dead: it has no watchdog")
		if w.ConfirmDead("b", 1, "alice") || !w.ConfirmDead("b", 2, "alice has confirmed that it is dead") {
			t.Error("a word about an earlier life counts, or one about this life does not")
		}
		want(t, w.look(), "b", Silent, "alice")
		w.mute["b"] = false
		want(t, w.pass(time.Second), "b", Up, "")
	})
	t.Run("one of three is no mass, two are", func(t *testing.T) {
		w := watch("a", "b", "c")
		w.mute["b"] = true
		w.pass(2 * time.Second)
		w.mute["c"] = true
		f := w.pass(6500 * ms) // b has waited for all of its time, c for most of it
		want(t, f, "b", Blocked, "2 of 3 hosts are silent at once")
		want(t, f, "c", Up, "")
		w.mute["c"] = false
		want(t, w.pass(500*ms), "b", Silent, "")
	})
	t.Run("three of ten are no mass, four are", func(t *testing.T) {
		var hosts []inventory.HostID
		for i := range 10 {
			hosts = append(hosts, inventory.HostID(fmt.Sprint(i)))
		}
		w := watch(hosts...)
		w.mute["0"], w.mute["1"], w.mute["2"] = true, true, true
		want(t, w.pass(9*time.Second), "1", Silent, "")
		w = watch(hosts...)
		w.mute["0"], w.mute["1"], w.mute["2"], w.mute["3"] = true, true, true, true
		f := w.pass(9 * time.Second)
		want(t, f, "1", Blocked, "4 of 10")
		w.ConfirmDead("3", w.last["3"].Revision, "alice") // and it counts no longer
		want(t, w.look(), "1", Silent, "")
	})
	t.Run("what was fenced, and what never renewed, is not silent", func(t *testing.T) {
		w := watch("a", "b", "c", "d")
		fenced, never := w.last["b"], w.last["c"]
		fenced.Fenced, fenced.Epoch = true, 2
		never.Revision = 0
		w.last["b"], w.last["c"] = fenced, never
		w.Forget("c")
		w.mute["b"], w.mute["c"], w.mute["d"] = true, true, true
		f := w.pass(time.Minute)
		want(t, f, "b", Fenced, "")
		want(t, f, "c", Blocked, "c has never had an authority")
		want(t, f, "d", Silent, "") // the only one that fell silent
	})
	t.Run("a new epoch is a sign of life, a fence is none", func(t *testing.T) {
		w := watch("a", "b", "c")
		w.mute["b"] = true
		w.pass(8 * time.Second)
		r := w.last["b"]
		r.Epoch, r.Fenced = 2, true
		w.last["b"] = r
		want(t, w.pass(time.Second), "b", Fenced, "")
		r.Epoch, r.Fenced = 3, false
		w.last["b"] = r
		want(t, w.pass(8*time.Second), "b", Up, "")
		want(t, w.pass(time.Second), "b", Silent, "")
	})
	t.Run("a new leader waits anew", func(t *testing.T) {
		w := watch("a", "b", "c")
		w.mute["b"] = true
		w.pass(time.Hour)
		next := watch("a", "b", "c")
		next.last, next.mute, next.Observer = w.last, w.mute, NewObserver(Default())
		f := next.pass(8 * time.Second)
		want(t, f, "b", Up, "")
		if f["b"].Alive || !f["a"].Alive {
			t.Error("it takes its first sight for a sign of life, or a sign of life for none")
		}
		want(t, next.pass(time.Second), "b", Silent, "")
	})
	t.Run("time without the store counts for nobody", func(t *testing.T) {
		w := watch("a", "b", "c")
		w.mute["b"] = true
		w.pass(7 * time.Second)
		w.now += time.Hour // a and b could not renew, and the observer not read
		want(t, w.look(), "b", Up, "")
		want(t, w.pass(time.Second), "b", Silent, "")
	})
	t.Run("a host that was removed is forgotten", func(t *testing.T) {
		w := watch("a", "b", "c")
		delete(w.last, "b")
		if f := w.pass(time.Minute); len(f) != 2 {
			t.Errorf("%d hosts", len(f))
		}
	})
}

// Whatever the delays, the drift of the clocks and the leader's changes: a fence that its transaction lets through comes after the end of the
// authority that the host counts. Moments of the two clocks are never compared but here, where a third one is the true time.
func TestNoFenceDuringAuthority(t *testing.T) {
	for range 40 { // a hundred runs each: enough to find a silence of 0.99 * lease
		rapid.Check(t, fenceDuringAuthority)
	}
}

func fenceDuringAuthority(t *rapid.T) {
	s := Default()
	const rho = 500e-6
	drift := func(name string) float64 { return 1 + rapid.Float64Range(-rho, rho).Draw(t, name) }
	host, leader := drift("host's clock"), drift("leader's clock")
	observer := NewObserver(s)
	r := inventory.Renewal{Host: "b", Revision: 1, Epoch: 1, Lease: s.Lease, Fencing: inventory.FencedByWatchdog}
	var until float64 // true time by which the host has stopped, by what it knows
	var now float64   // true time
	step := func(name string, most time.Duration) float64 {
		return float64(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, int64(most))).Draw(t, name))
	}
	for range rapid.IntRange(1, 40).Draw(t, "steps") {
		switch rapid.IntRange(0, 5).Draw(t, "what") {
		case 0, 1: // a renewal: sent, done, acknowledged, each later than the one before
			sent := now
			now += step("on its way", 2*time.Second)
			lease := rapid.SampledFrom([]time.Duration{s.Lease, s.Planned}).Draw(t, "lease")
			if until > sent+float64(lease)/host {
				until = sent + float64(lease)/host // the host shortens its own authority before it sends
			}
			r.Revision, r.Lease = r.Revision+1, lease
			if rapid.Bool().Draw(t, "acknowledged") {
				until = max(until, sent+float64(lease)/host)
			}
		case 2:
			// Mostly about as long as something lasts.
			now += float64(rapid.SampledFrom([]time.Duration{0, s.Stop, s.Lease, s.Silence, s.Planned}).Draw(t, "pause")) * (0.95 + step("more", 100)/1000)
		case 3, 4: // the leader reads, and is told later
			read := r
			now += step("answer", time.Second)
			observer.Read([]inventory.Renewal{read}, Moment(now*leader))
		case 5:
			observer = NewObserver(s)
		}
		for _, f := range observer.Look(Moment(now * leader)) {
			if f.Standing == Silent && f.Revision == r.Revision && now < until {
				t.Fatalf("fenced %v before the host's authority ends", time.Duration(until-now))
			}
		}
	}
}
