package authority

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The VMs of the stories: on shared storage, on storage that arbitrates, and one that nobody has told of.
const (
	leased VM = "vm-leased"
	stored VM = "vm-stored"
	hidden VM = "vm-hidden"
)

// runs, frozen and dead are cgroups as the kernel shows them.
func runs(ids ...VM) (all []Cgroup) {
	for _, id := range ids {
		all = append(all, Cgroup{VM: id, Living: true})
	}
	return all
}

func frozen(id VM) Cgroup { return Cgroup{VM: id, Living: true, Frozen: true} }

func dead(id VM) Cgroup { return Cgroup{VM: id} }

// words writes actions down in a line.
func words(actions []WardenAction) string {
	var all []string
	for _, a := range actions {
		all = append(all, strings.TrimSpace(string(a.Kind)+" "+string(a.VM)))
	}
	return strings.Join(all, ", ")
}

// told returns a warden of a host that has had its first authority, until 8 s from 100 s on, and said Clear.
func told() Warden {
	w := NewWarden(Default(), 3, 0)
	w.Told(3, 108*sec, nil)
	w.VM(leased, LeaseArbitrates, false)
	w.VM(stored, StorageArbitrates, false)
	w.Look(100*sec, nil)
	return w
}

func TestWardenLooks(t *testing.T) {
	stopped := func(w *Warden) { w.VM(leased, LeaseArbitrates, true) }
	gaveUp := func(living ...Cgroup) func(*Warden) { return func(w *Warden) { w.GivenUp(living) } }
	for story, c := range map[string]struct {
		before func(*Warden)
		now    Moment
		see    []Cgroup
		want   string
	}{
		"while authority is valid everything may run": {nil, 104*sec + 999*ms, runs(leased, stored, hidden), "feed"},
		"at 5 s what was not stopped is killed":       {nil, 105 * sec, runs(leased, stored, hidden), "kill vm-hidden, kill vm-leased"},
		"and what was stopped is frozen":              {stopped, 105 * sec, runs(leased, stored), "freeze vm-leased"},
		"frozen after a stop is proof":                {stopped, 105 * sec, append(runs(stored), frozen(leased)), "feed"},
		"frozen without a stop is none":               {nil, 105 * sec, []Cgroup{frozen(leased)}, "kill vm-leased"},
		"dead is proof":                               {nil, 105 * sec, append(runs(stored), dead(leased)), "feed"},
		"storage that arbitrates needs no authority":  {nil, time.Hour, runs(stored), "feed"},
		"a VM that has left and lives is unknown":     {func(w *Warden) { w.Gone(stored) }, 105 * sec, runs(stored), "kill vm-stored"},
		"authority that is back thaws":                {func(w *Warden) { stopped(w); w.Told(3, 118*sec, nil) }, 110 * sec, []Cgroup{frozen(leased)}, "thaw vm-leased, feed"},
		"another one kills, frozen or not": {
			func(w *Warden) { stopped(w); w.Told(4, 118*sec, []Cgroup{frozen(leased), {VM: stored, Living: true}}) }, 110 * sec,
			append(runs(stored), frozen(leased)), "kill vm-leased",
		},
		"and is clear when that is dead": {
			func(w *Warden) { w.Told(4, 118*sec, runs(leased)) }, 110 * sec, []Cgroup{dead(leased)}, "clear, feed",
		},
		"a VM of the new authority is not of the old": {
			func(w *Warden) { w.Told(4, 118*sec, nil); w.VM("vm-new", LeaseArbitrates, false) }, 110 * sec, runs("vm-new"), "clear, feed",
		},
		"what was given up dies at once":     {gaveUp(runs(leased, stored)...), 100 * sec, runs(leased, stored), "kill vm-leased"},
		"a stop does not save it":            {func(w *Warden) { gaveUp(runs(leased)...)(w); stopped(w) }, 100 * sec, []Cgroup{frozen(leased)}, "kill vm-leased"},
		"nor what starts afterwards":         {gaveUp(), 100 * sec, runs(leased), "kill vm-leased"},
		"a shorter authority ends earlier":   {func(w *Warden) { w.Shorten(103 * sec) }, 100 * sec, runs(leased), "kill vm-leased"},
		"a later word makes it no shorter":   {func(w *Warden) { w.Told(3, 101*sec, nil) }, 104 * sec, runs(leased), "feed"},
		"a longer one lasts in proportion":   {func(w *Warden) { w.Told(3, 160*sec, nil) }, 157*sec - 1, runs(leased), "feed"},
		"the longer one ends 3 s before too": {func(w *Warden) { w.Told(3, 160*sec, nil) }, 157 * sec, runs(leased), "kill vm-leased"},
	} {
		t.Run(story, func(t *testing.T) {
			w := told()
			if c.before != nil {
				c.before(&w)
			}
			if got := words(w.Look(c.now, c.see)); got != c.want {
				t.Errorf("%q, not %q", got, c.want)
			}
		})
	}
}

// The story: a warden starts on a host whose former warden has left no word. What lives is the agent's to judge, and the watchdog is not fed for it.
func TestWardenThatKnowsNothing(t *testing.T) {
	w := NewWarden(Default(), 0, 0)
	for _, see := range []struct {
		cgroups []Cgroup
		want    string
	}{{nil, "feed"}, {runs(leased), ""}, {[]Cgroup{frozen(leased)}, ""}, {[]Cgroup{dead(leased)}, "feed"}} {
		if got := words(w.Look(time.Hour, see.cgroups)); got != see.want || w.Clean() {
			t.Errorf("%v: %q, not %q", see.cgroups, got, see.want)
		}
	}
	w.Told(7, time.Hour+8*sec, runs(leased))
	if got := words(w.Look(time.Hour, runs(leased))); got != "clear, feed" || !w.Clean() {
		t.Errorf("told, it does %q", got)
	}
}

// The story: a warden is killed, and the next one goes on from what it wrote down.
func TestWardenGoesOnFromItsPredecessor(t *testing.T) {
	w := NewWarden(Default(), 3, 108*sec)
	w.VM(leased, LeaseArbitrates, true)
	w.Doom(hidden)
	if got := words(w.Look(100*sec, runs(leased, hidden))); got != "kill vm-hidden" || w.Clean() {
		t.Errorf("first it does %q", got)
	}
	if got := words(w.Look(105*sec, runs(leased))); got != "freeze vm-leased" || !w.Clean() {
		t.Errorf("then it does %q", got)
	}
	if w.Dead(runs(leased)) || !w.Dead([]Cgroup{frozen(leased), dead(hidden)}) {
		t.Error("it takes what runs for dead, or what is frozen for running")
	}
}

// fate is what the world of the property knows of a VM's processes, whatever the warden thinks.
type fate struct {
	living, frozen bool
	stuck          bool // in the kernel's hands: neither freezes nor dies
	stopped        bool // the agent has said so
	arbiter        Arbiter
	cast           bool // it lived, on lease-arbitrated storage, when its authority was lost for good
}

// TestWardenProperties has the warden live through any order of words, stuck processes, pauses of its own and moments, and demands after each of
// its looks: the watchdog is never fed while a VM on lease-arbitrated storage runs beyond its time; what was cast out never runs on, and is
// killed at every look until it is dead; Clear comes only when all of that is dead; and what may run is neither frozen nor killed.
func TestWardenProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Default()
		w := NewWarden(s, 0, 0)
		now, until, fences := 100*sec, Moment(0), uint64(0)
		known, over := false, false
		names := []VM{"vm-1", "vm-2", "vm-3", "vm-4"}
		all := map[VM]*fate{}
		for _, id := range names {
			all[id] = &fate{arbiter: LeaseArbitrates}
		}
		see := func() (cgroups []Cgroup) {
			for _, id := range names {
				if f := all[id]; f.living || rapid.Bool().Draw(t, "empty cgroup stays") {
					cgroups = append(cgroups, Cgroup{id, f.living, f.frozen})
				}
			}
			return cgroups
		}
		castOut := func() {
			for _, f := range all {
				f.cast = f.cast || f.living && f.arbiter == LeaseArbitrates
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now += rapid.SampledFrom([]time.Duration{0, ms, 50 * ms, sec, 2 * sec, 5 * sec, time.Minute}).Draw(t, "pause")
			id := rapid.SampledFrom(names).Draw(t, "vm")
			f := all[id]
			switch rapid.SampledFrom([]string{"renew", "renew", "fenced", "shorten", "give up", "start", "start", "stop", "resume", "stick", "loosen", "ends", "restart"}).Draw(t, "what") {
			case "renew", "fenced":
				next := fences
				if rapid.Bool().Draw(t, "fenced") {
					next++
				}
				if known && (over || next != fences) {
					castOut()
					until = 0
				}
				known, over, fences = true, false, next
				told := now + rapid.SampledFrom([]time.Duration{-sec, 5 * sec, 8 * sec, time.Minute}).Draw(t, "lease")
				until = max(until, told)
				w.Told(fences, told, see())
			case "shorten":
				at := now + rapid.SampledFrom([]time.Duration{sec, 8 * sec}).Draw(t, "lease")
				if until != 0 {
					until = min(until, at)
				}
				w.Shorten(at)
			case "give up":
				castOut()
				known, over, until = true, true, 0
				w.GivenUp(see())
			case "start": // a new QEMU, told before it runs, or one that nobody has told of
				if f.living || slices.Contains(w.Doomed(), id) { // the agent waits for Clear
					continue
				}
				*f = fate{living: true, arbiter: LeaseArbitrates}
				if w.Gone(id); rapid.Bool().Draw(t, "told") {
					f.arbiter = rapid.SampledFrom([]Arbiter{LeaseArbitrates, StorageArbitrates}).Draw(t, "arbiter")
					w.VM(id, f.arbiter, false)
				}
			case "stop":
				f.stopped = true
				w.VM(id, f.arbiter, true)
			case "resume":
				f.stopped = false
				w.VM(id, f.arbiter, false)
			case "stick":
				f.stuck = true
			case "loosen":
				f.stuck = false
			case "ends":
				f.living, f.frozen, f.cast = false, false, false
			case "restart": // of the warden, from what it wrote down
				next := NewWarden(s, w.Fences, w.Until)
				next.Over = w.Over
				for _, id := range w.VMs() {
					next.VM(id, w.Knows(id).Arbiter, w.Knows(id).Stopped)
				}
				for _, id := range w.Doomed() {
					next.Doom(id)
				}
				w = next
			}
			valid := known && !over && until != 0 && now < until-(s.Lease-s.Freeze)
			if at, ok := w.FreezeAt(); w.Valid(now) != valid || ok && at != until-(s.Lease-s.Freeze) {
				t.Fatalf("at %v it is valid: %v, and ends at %v", now, w.Valid(now), at)
			}
			actions := w.Look(now, see())
			killed, seen := map[VM]bool{}, map[VM]fate{} // seen: before anything was done, which is no proof yet
			for id, v := range all {
				seen[id] = *v
			}
			for _, a := range actions {
				v := all[a.VM]
				switch a.Kind {
				case Kill:
					killed[a.VM] = true
					if !v.cast && (valid || v.arbiter == StorageArbitrates || v.stopped || !known) {
						t.Fatalf("at %v it kills %s, which %+v", now, a.VM, *v)
					}
					if !v.stuck {
						v.living, v.frozen, v.cast = false, false, false
					}
				case Freeze:
					if valid || v.arbiter == StorageArbitrates {
						t.Fatalf("at %v it freezes %s, which %+v", now, a.VM, *v)
					}
					v.frozen = v.frozen || !v.stuck
				case Thaw:
					if v.cast || !valid && v.arbiter != StorageArbitrates {
						t.Fatalf("at %v it thaws %s, which %+v", now, a.VM, *v)
					}
					v.frozen = false
				case Clear:
					for id, v := range seen {
						if v.cast {
							t.Fatalf("at %v it is clear, and %s lives from before", now, id)
						}
					}
				case Feed:
					for id, v := range seen {
						quiet := v.frozen && v.stopped || v.arbiter == StorageArbitrates || valid
						if v.living && (v.cast || !quiet) {
							t.Fatalf("at %v it feeds the watchdog, and %s %+v (authority valid: %v)", now, id, v, valid)
						}
					}
				}
			}
			for id, v := range seen {
				if v.living && v.cast && !killed[id] {
					t.Fatalf("at %v it does %s, and %s lives from before", now, words(actions), id)
				}
			}
		}
	})
}

// Looks do not depend on the order in which the kernel lists cgroups.
func TestWardenIsOrderly(t *testing.T) {
	first, second := told(), told()
	see := runs("vm-1", "vm-2", "vm-3", leased)
	turned := slices.Clone(see)
	slices.Reverse(turned)
	if a, b := words(first.Look(time.Hour, see)), words(second.Look(time.Hour, turned)); a != b {
		t.Errorf("%q and %q", a, b)
	}
	if got := fmt.Sprint(first.VMs()); got != fmt.Sprint(slices.Sorted(maps.Keys(first.vms))) {
		t.Errorf("VMs %s", got)
	}
}
