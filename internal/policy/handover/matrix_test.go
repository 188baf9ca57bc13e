package handover

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The matrix is what may become of a VM when one thing goes wrong in one phase of its migration. Its cells are computed here, from the machines, and kept in
// testdata/matrix.table; real migrations of real QEMUs are held to it by test/matrix.

// matrixHead is the head of testdata/matrix.table.
const matrixHead = `# What may become of a VM when one thing goes wrong in one phase of its migration: computed from the two machines by matrix_test.go, written by
# go test -rewrite, and held against real migrations by test/matrix (make matrix).
#
# Outcomes, when the fault is over and all hosts are there:
#   source          it runs at the source, in the process that it was in: nothing of it was lost
#   target          it runs at the target with the memory that it had at the source
#   cold at source  its process ended: its owner, the source, shows it as crashed and can start it anew, at once
#   cold at target  the same, its owner being the target
# A migration may be undecided for a while, as long as an end of it that must speak cannot. It does not stay so.
#
# The bound is from the end of the fault until all of that is so, and nothing is left elsewhere. A process that is killed or a stream that is cut has its
# fault's end at once, one that stands when it goes on or is killed for its silence; of the store it is D + 5 s, D being 8.5 s, since leases count.
#
# How a fault that the model has no word for is said in it:
#   agent killed      its restart, which is one step there; the source's QEMU may fail with the stream, which went through the agent
#   agent stands      nothing is heard of it while all others go on; then it is restarted, as its warden kills it after 2 s, or goes on
#   QEMU stands       it does nothing by itself while the others go on; then it goes on, or the source's engine has given up
#   stream cut        the source's QEMU fails, the target's cannot load and ends, or both; the source's engine may give up
#   stream stands     both QEMUs do nothing by themselves; then they go on, or the source's engine has given up
#   store stands      authority gets short at either end or both, or the source's engine has given up, at any moment while the others go on
#   datastore full    in prepare the target makes no lock record, and gives up; later nothing is written there that must be
`

// phases are where a migration can be struck.
var phases = []struct {
	name string
	in   func(l *lab, w world) bool
}{
	{"prepare", func(l *lab, w world) bool { return l.targetOf(w).State == TargetPreparing }},
	{"pre-copy", func(_ *lab, w world) bool { return w.aQEMU == copying }},
	{"pre-switchover", func(_ *lab, w world) bool { return w.aQEMU == stopped }},
	{"device", func(_ *lab, w world) bool { return w.aQEMU == device && w.bQEMU == incoming }},
	{"loaded", func(l *lab, w world) bool { return w.bQEMU == loaded && !l.sourceOf(w).Released }},
	{"release", func(l *lab, w world) bool {
		b := l.targetOf(w).State
		return l.sourceOf(w).Released && (b == TargetIncoming || b == TargetLoadedUp)
	}},
	{"resume", func(l *lab, w world) bool { return l.targetOf(w).State == TargetResuming }},
	{"owner write", func(l *lab, w world) bool { return l.targetOf(w).State == TargetRunning && l.record(w).Owner == hostA }},
	{"clean-up", func(l *lab, w world) bool { return l.record(w).Owner == hostB && !l.sourceOf(w).Final() }},
}

// struckBy returns the worlds that a fault may lead to.
type struckBy func(l *lab, w world) []world

// blows are what can go wrong.
var blows = []struct {
	name   string
	stream bool // there must be one
	bound  string
	strike struckBy
}{
	{"source agent killed", false, "10s", func(l *lab, w world) []world { return l.cut(l.restartA(w)) }},
	{"target agent killed", false, "10s", func(l *lab, w world) []world { return l.cut(l.restartB(w)) }},
	{"source QEMU killed", false, "10s", func(l *lab, w world) []world { w.aHurt = true; return []world{l.killA(w)} }},
	{"target QEMU killed", false, "10s", func(l *lab, w world) []world { w.bHurt = true; return []world{l.killB(w)} }},
	{"source agent stands 2s", false, "10s", stands(agentA, true, (*lab).restartA)},
	{"target agent stands 2s", false, "10s", stands(agentB, true, (*lab).restartB)},
	{"source QEMU stands 2s", false, "10s", stands(qemuA, true, nil)},
	{"target QEMU stands 2s", false, "10s", stands(qemuB, true, nil)},
	{"source agent stands 30s", false, "10s", stands(agentA, false, (*lab).restartA)},
	{"target agent stands 30s", false, "10s", stands(agentB, false, (*lab).restartB)},
	{"source QEMU stands 30s", false, "10s", stands(qemuA, true, nil)},
	{"target QEMU stands 30s", false, "10s", stands(qemuB, true, nil)},
	{"stream cut", true, "10s", func(l *lab, w world) []world {
		all := l.after(w, failsAlone, givesUp)
		if w.bQEMU == incoming {
			dead := l.killB(w)
			dead.bHurt = true
			all = append(append(all, dead), l.after(dead, failsAlone, givesUp)...)
		}
		return all
	}},
	{"stream stands 6s", true, "10s", stands(func(name string) bool { return qemuA(name) || qemuB(name) }, true, nil)},
	{"store stands 6s", false, "13.5s", func(l *lab, w world) []world {
		var all []world
		for _, n := range l.walk([]world{w}, nil) {
			all = append(append(all, n), l.after(n, givesUp)...)
			a, b := n, n
			a.aAuth, b.bAuth = short, short
			both := a
			both.bAuth = short
			all = append(all, a, b, both)
		}
		return all
	}},
	{"target datastore full", false, "10s", func(l *lab, w world) []world {
		if l.targetOf(w).State == TargetPreparing {
			return []world{l.tellB(w, TargetEvent{Kind: TargetDiscard})}
		}
		return []world{w}
	}},
}

// Whose steps they are, by the beginnings of their names.
func agentA(name string) bool {
	return strings.HasPrefix(name, "A ") || strings.HasPrefix(name, "A:") || strings.HasPrefix(name, givesUp)
}

func agentB(name string) bool { return strings.HasPrefix(name, "B ") || strings.HasPrefix(name, "B:") }
func qemuA(name string) bool  { return strings.HasPrefix(name, "A's QEMU") }
func qemuB(name string) bool  { return strings.HasPrefix(name, "B's QEMU") }

// Names of steps that are no fault of their own but follow from one.
const (
	givesUp    = "A's engine gives up"
	failsAlone = "A's QEMU fails and runs on by itself"
)

// stands is a fault in which somebody does nothing for a while, whose steps silent tells. Then it goes on, if it lives, or is replaced, and the source's engine
// may have given up meanwhile.
func stands(silent func(name string) bool, lives bool, replace func(*lab, world) world) struckBy {
	return func(l *lab, w world) []world {
		var all []world
		for _, n := range l.walk([]world{w}, silent) {
			if lives {
				all = append(all, n)
			}
			if replace != nil {
				all = append(all, l.cut(replace(l, n))...)
			} else {
				all = append(all, l.after(n, givesUp)...)
			}
		}
		return all
	}
}

// cut is what may follow from the end of an agent, through which the stream goes.
func (l *lab) cut(w world) []world {
	return append([]world{w}, l.after(w, failsAlone)...)
}

// begin is a migration whose target is being prepared, which is before where the explorer begins.
func (l *lab) begin() world {
	w := l.start()
	w.b, w.aQEMU, w.bQEMU, w.bHas = l.target(NewTarget(testID)), alone, gone, nothing
	return w
}

// moves are the benign steps of a world but those of the silent, with the preparation before them.
func (l *lab) moves(w world, silent func(name string) bool) []world {
	var next []world
	add := func(n world, name string) {
		if silent == nil || !silent(name) {
			next = append(next, n)
		}
	}
	for _, st := range l.steps(w, nil) {
		if st.benign {
			add(st.next, st.name[0])
		}
	}
	if l.sourceOf(w).State != SourceCopying || w.aQEMU != alone || w.aActs[0] != 0 || w.aNews[0] != 0 {
		return next
	}
	n := w
	switch b := l.targetOf(w).State; {
	case b == TargetPreparing && w.bActs[0] == 0 && w.bQEMU == incoming:
		add(l.tellB(w, TargetEvent{Kind: TargetPrepared}), "B is prepared")
	case b == TargetPreparing && w.bActs[0] == 0 && w.bNews[0] == 0:
		n.bQEMU, n.bHas = incoming, reserved
		add(n, "B starts its QEMU")
	case b == TargetIncoming:
		n.aQEMU = copying
		add(n, "A's QEMU is told to migrate")
	case b != TargetPreparing:
		add(l.tellA(w, SourceEvent{Kind: SourceAbort}), "A hears that the target cannot be prepared")
	}
	return next
}

// after returns the worlds behind the steps of these names.
func (l *lab) after(w world, names ...string) (all []world) {
	for _, st := range l.steps(w, nil) {
		if slices.Contains(names, st.name[0]) {
			all = append(all, st.next)
		}
	}
	return all
}

// walk returns the worlds and all that can be reached from them by benign steps but those of the silent.
func (l *lab) walk(worlds []world, silent func(name string) bool) []world {
	seen := map[world]bool{}
	var all []world
	visit := func(w world) {
		if !seen[w] {
			seen[w] = true
			all = append(all, w)
		}
	}
	for _, w := range worlds {
		visit(w)
	}
	for i := 0; i < len(all); i++ {
		for _, n := range l.moves(all[i], silent) {
			visit(n)
		}
	}
	return all
}

// calm reports whether nothing has gone wrong on the way to a world.
func (l *lab) calm(w world) bool {
	switch l.sourceOf(w).State {
	case SourceAborting, SourceKeeping, SourceResuming, SourceWithdrawing, SourceDropped, SourceEnding, SourceAdopted:
		return false
	case SourceCopying, SourceGate, SourceSwitching, SourceDone, SourceReleased, SourceMoved, SourceOver, SourceSwitched, SourceServing:
	}
	return w.bQEMU != gone || l.targetOf(w).State == TargetPreparing
}

// outcome names what has become of the VM in a settled world.
func (w world) outcome() string {
	switch {
	case w.cold == 'A':
		return "cold at source"
	case w.cold == 'B':
		return "cold at target"
	case w.cold != 0:
		return "cold elsewhere"
	case w.bQEMU == running:
		return "target"
	}
	return "source"
}

// outcomes lists what can become of the VM from these worlds on when nothing more goes wrong.
func (l *lab) outcomes(t *testing.T, worlds []world) []string {
	found := map[string]bool{}
	for _, w := range l.walk(worlds, nil) {
		if bad := w.check(); bad != fine {
			t.Errorf("%s", faults[bad])
		}
		if l.settled(w) {
			found[w.outcome()] = true
		}
	}
	var all []string
	for _, o := range []string{"source", "target", "cold at source", "cold at target", "cold elsewhere"} {
		if found[o] {
			all = append(all, o)
		}
	}
	return all
}

// TestMatrix computes the matrix and holds it against the kept one.
func TestMatrix(t *testing.T) {
	l := &lab{rules: goodRules()}
	l.budget = 1 // what follows from the fault, as the end of a stream with its agent
	var calm []world
	for _, w := range l.walk([]world{l.begin()}, nil) {
		if l.calm(w) {
			calm = append(calm, w)
		}
	}
	var out strings.Builder
	out.WriteString(matrixHead)
	cells := 0
	for _, phase := range phases {
		var here []world
		for _, w := range calm {
			if phase.in(l, w) {
				here = append(here, w)
			}
		}
		if len(here) == 0 {
			t.Fatalf("no world is in phase %s", phase.name)
		}
		out.WriteString("\n")
		for _, b := range blows {
			// There is a stream from the first byte of the copy until QEMU has completed.
			if b.stream && (phase.name == "prepare" || slices.Index(phaseNames(), phase.name) > slices.Index(phaseNames(), "loaded")) {
				continue
			}
			var struck []world
			for _, w := range here {
				struck = append(struck, b.strike(l, w)...)
			}
			all := l.outcomes(t, struck)
			if len(all) == 0 {
				t.Errorf("%s, %s: no end is reached", phase.name, b.name)
			}
			fmt.Fprintf(&out, "%-14s | %-23s | %-36s | %s\n", phase.name, b.name, strings.Join(all, ", "), b.bound)
			cells++
		}
	}
	t.Logf("%d cells", cells)
	table(t, "testdata/matrix.table", out.String())
}

func phaseNames() []string {
	var all []string
	for _, p := range phases {
		all = append(all, p.name)
	}
	return all
}
