package handover

import (
	"flag"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// finding is what an exploration found wrong, with the shortest way there.
type finding struct {
	what string
	path []string
}

// explore walks every world that can be reached under the rules. It stops at the first one that is unsafe, and then looks for
// worlds from which no benign steps lead to a settled one. It returns the number of worlds.
func explore(r rules) (int, *finding) {
	l := &lab{rules: r}
	worlds := []world{l.start()}
	seed := maphash.MakeSeed()
	index := map[uint64]int32{} // by hash; the next free one where another world has it
	find := func(w world) (at uint64, i int32, seen bool) {
		for at = maphash.Comparable(seed, w); ; at++ {
			if i, seen = index[at]; !seen || worlds[i] == w {
				return at, i, seen
			}
		}
	}
	first, _, _ := find(worlds[0])
	index[first] = 0
	parent := []int32{-1}
	type edge struct{ from, to int32 }
	var benign []edge
	path := func(i int32) []string {
		var p []string
		for ; parent[i] >= 0; i = parent[i] {
			for _, st := range l.steps(worlds[parent[i]], nil) {
				if st.next == worlds[i] {
					p = append(p, strings.TrimSpace(strings.Join(st.name[:], " ")))
					break
				}
			}
		}
		slices.Reverse(p)
		return p
	}
	var out []step
	for i := int32(0); int(i) < len(worlds); i++ {
		out = l.steps(worlds[i], out[:0])
		for _, st := range out {
			at, t, seen := find(st.next)
			if !seen {
				t = int32(len(worlds))
				index[at] = t
				worlds, parent = append(worlds, st.next), append(parent, i)
				if bad := st.next.check(); bad != fine {
					return len(worlds), &finding{faults[bad], path(t)}
				}
			}
			if st.benign && t != i {
				benign = append(benign, edge{i, t})
			}
		}
	}
	// What is settled is well; what can come to a settled world by benign steps alone is well too.
	slices.SortFunc(benign, func(x, y edge) int { return int(x.to - y.to) })
	well := make([]bool, len(worlds))
	var todo []int32
	for i, w := range worlds {
		if l.settled(w) {
			well[i], todo = true, append(todo, int32(i))
		}
	}
	for len(todo) > 0 {
		t := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		at, _ := slices.BinarySearchFunc(benign, t, func(e edge, t int32) int { return int(e.to - t) })
		for ; at < len(benign) && benign[at].to == t; at++ {
			if from := benign[at].from; !well[from] {
				well[from], todo = true, append(todo, from)
			}
		}
	}
	for i := range worlds { // breadth first: the first one has the shortest way
		if !well[i] {
			return len(worlds), &finding{"stuck: " + l.tell(worlds[i]), path(int32(i))}
		}
	}
	return len(worlds), nil
}

var whole = flag.Bool("whole", false, "walk further than every run of the tests does: minutes")

// walks are what the test walks, the small ones first: a mistake is told by the shortest way that shows it.
func walks() []walk {
	list := []walk{
		{mode: inventory.PreCopyOnly, budget: 1}, {mode: inventory.PostCopy, budget: 1}, {mode: inventory.PreCopyOnly, budget: 2},
	}
	if !raced {
		list = append(list, walk{mode: inventory.PreCopyOnly, free: true}, walk{mode: inventory.PostCopy, budget: 2})
	}
	if *whole {
		list = append(list, walk{mode: inventory.PreCopyOnly, budget: 3}, walk{mode: inventory.PreCopyOnly, budget: 1, free: true})
	}
	return list
}

func (k walk) String() string {
	text := fmt.Sprintf("%s, %d faults", k.mode, k.budget)
	if k.free {
		text += " and any number of those that are free"
	}
	if k.noFences {
		text += ", no fences"
	}
	return text
}

// TestNoInterleavingBreaksTheHandOver walks every interleaving of the two ends and of all that may go wrong around them. It also
// holds the explorer to look everywhere: a state or an action that no walk comes to would be proven of nothing. Built with a seeded
// defect (make defects) it must find that.
func TestNoInterleavingBreaksTheHandOver(t *testing.T) {
	sources, does := map[SourceState]bool{}, map[SourceActionKind]bool{}
	targets, doesToo := map[TargetState]bool{}, map[TargetActionKind]bool{}
	r := goodRules()
	r.source = func(s Source, e SourceEvent) (Source, []SourceAction) {
		next, actions := s.Step(e)
		sources[s.State] = true
		for _, a := range actions {
			does[a.Kind] = true
		}
		return next, actions
	}
	r.target = func(b Target, e TargetEvent) (Target, []TargetAction) {
		next, actions := b.Step(e)
		targets[b.State] = true
		for _, a := range actions {
			doesToo[a.Kind] = true
		}
		return next, actions
	}
	for _, walk := range walks() {
		r.walk = walk
		began := time.Now()
		n, found := explore(r)
		t.Logf("%s: %d states in %.1fs", walk, n, time.Since(began).Seconds())
		if found != nil && len(defect.Names) > 0 {
			fmt.Printf("explorer: found in %d states: %s\n", n, found.what)
			return
		}
		if found != nil {
			t.Fatalf("%s\n  %s", found.what, strings.Join(found.path, "\n  "))
		}
	}
	if len(defect.Names) > 0 {
		t.Fatalf("nothing found: the explorer does not see %s", strings.Join(defect.Names, ", "))
	}
	for _, s := range allSourceStates {
		if !sources[s] {
			t.Errorf("the source never comes to %s", s)
		}
	}
	for _, s := range allTargetStates {
		if !targets[s] && s != TargetPreparing { // the walk begins after it
			t.Errorf("the target never comes to %s", s)
		}
	}
	for _, a := range allSourceActions {
		if !does[a] && a != SourceViolation {
			t.Errorf("the source never does %s", a)
		}
	}
	for _, a := range allTargetActions {
		if !doesToo[a] && a != TargetViolation {
			t.Errorf("the target never does %s", a)
		}
	}
}
