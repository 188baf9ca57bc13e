// Package membership decides which machines carry a member of the store: one, three or five of them, never an even number for longer than a
// change takes. It is pure: what is known goes in, the next single step comes out. After each step the leader looks anew.
//
// One machine carries one member, so do two, since two members are lost with either; three or four machines carry three, five and more
// carry five. A witness is a machine like any other here, and is the first to be chosen once there are three, since it is there for nothing else.
//
// A member first listens (learner), then votes: listening costs no quorum. The steps keep to what can be lost: a voter goes only if those
// that answer after that are a majority still.
package membership

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// MembersMax is how many members a store has at most. More would make each write slower and protect from nothing that happens.
const MembersMax = 5

// Machine is a host or a witness of the cluster.
type Machine struct {
	Host    inventory.HostID
	Witness bool
	Up      bool // it answers now, and may be given a member
	Lost    bool // it was silent for so long that its member is to be replaced
	Leaving bool // it is to be removed from the cluster
}

// Member is a member of the store.
type Member struct {
	ID      uint64
	Host    inventory.HostID
	Learner bool
	Answers bool // now
	Lost    bool // it has not answered for so long that it is to be replaced
}

// Kind says what is to be done.
type Kind string

// The steps.
const (
	Nothing Kind = ""        // all is as it should be, or Why says what is waited for
	Add     Kind = "add"     // a new learner at Host
	Promote Kind = "promote" // Member votes from now on
	Remove  Kind = "remove"  // Member goes for good
)

// Step is the next change.
type Step struct {
	Kind   Kind
	Host   inventory.HostID
	Member uint64 // of Promote and Remove
	Why    string // one line for log and events; with Nothing, what is waited for, or empty
}

// Wanted returns how many members a cluster of so many machines has.
func Wanted(machines int) int {
	switch {
	case machines >= MembersMax:
		return MembersMax
	case machines >= 3:
		return 3
	}
	return 1
}

// Next returns the next step. The order of its arguments does not matter.
func Next(machines []Machine, members []Member) Step {
	v := survey(machines, members)
	if v.learner != nil {
		return v.settleLearner()
	}
	for _, bad := range v.bad {
		if step, ok := v.replace(bad); ok {
			return step
		}
	}
	switch {
	case len(v.good) > v.wanted:
		return v.shrink()
	case len(v.good) < v.wanted:
		return v.grow()
	case len(v.bad) > 0:
		return Step{Why: v.bad[0].why + "; it can go when the others answer"}
	}
	return Step{}
}

// view is what Next sees.
type view struct {
	wanted     int
	machines   map[inventory.HostID]Machine
	voters     int       // all
	answering  int       // of them
	good       []Member  // voters that may stay
	bad        []badOne  // voters that are to go, the silent ones first
	learner    *Member   // etcd allows one
	candidates []Machine // that may be given a member, the best first
}

type badOne struct {
	Member

	why  string
	dead bool // its place can be filled only when it is gone
}

func survey(machines []Machine, members []Member) view {
	v := view{machines: map[inventory.HostID]Machine{}}
	staying := 0
	for _, m := range machines {
		v.machines[m.Host] = m
		if !m.Leaving {
			staying++
		}
	}
	v.wanted = Wanted(staying)
	carries := map[inventory.HostID]bool{}
	for _, m := range members {
		carries[m.Host] = true
		if m.Learner {
			v.learner = &m
			continue
		}
		v.voters++
		if m.Answers {
			v.answering++
		}
		if why, dead := v.against(m); why != "" {
			v.bad = append(v.bad, badOne{m, why, dead})
		} else {
			v.good = append(v.good, m)
		}
	}
	slices.SortFunc(v.bad, func(a, b badOne) int {
		return cmp.Or(order(b.dead, a.dead), cmp.Compare(a.Host, b.Host))
	})
	slices.SortFunc(v.good, func(a, b Member) int { return cmp.Compare(a.Host, b.Host) })
	for _, m := range machines {
		if m.Up && !m.Leaving && !m.Lost && !carries[m.Host] {
			v.candidates = append(v.candidates, m)
		}
	}
	slices.SortFunc(v.candidates, func(a, b Machine) int {
		first := order(b.Witness, a.Witness)
		if v.wanted == 1 { // a lone member belongs where the VMs are
			first = -first
		}
		return cmp.Or(first, cmp.Compare(a.Host, b.Host))
	})
	return v
}

// against returns why a member is to go, "" when it may stay.
func (v view) against(m Member) (why string, dead bool) {
	machine, known := v.machines[m.Host]
	switch {
	case !known:
		return fmt.Sprintf("host %s is not of the cluster any more", m.Host), !m.Answers
	case machine.Leaving:
		return fmt.Sprintf("host %s leaves the cluster", m.Host), !m.Answers
	case m.Lost || machine.Lost && !m.Answers:
		return fmt.Sprintf("the member of host %s has not answered for too long", m.Host), true
	}
	return "", false
}

// settleLearner makes the learner vote, or takes it back.
func (v view) settleLearner() Step {
	m := *v.learner
	if !v.majority() {
		return Step{Why: fmt.Sprintf("the new member of host %s has to wait: %d of %d members answer", m.Host, v.answering, v.voters)}
	}
	if why, _ := v.against(m); why != "" {
		return Step{Kind: Remove, Host: m.Host, Member: m.ID, Why: why}
	}
	if m.Answers {
		return Step{Kind: Promote, Host: m.Host, Member: m.ID, Why: "it has caught up"}
	}
	return Step{Why: fmt.Sprintf("the new member of host %s does not answer yet", m.Host)}
}

// replace removes a voter that is to go, if its place is filled or will be. Not ok: something else has to come first, or it has to stay.
func (v view) replace(bad badOne) (Step, bool) {
	filled := len(v.good) >= v.wanted
	gone := v.machines[bad.Host].Host == "" || v.machines[bad.Host].Leaving
	if !v.removable(bad.Member) || !filled && (!bad.dead || !gone && len(v.candidates) == 0) {
		return Step{}, false
	}
	return Step{Kind: Remove, Host: bad.Host, Member: bad.ID, Why: bad.why}, true
}

// majority reports whether the members can change anything.
func (v view) majority() bool { return v.answering >= v.voters/2+1 }

// removable reports whether those that answer are a majority, which a change takes, and still are one without the member.
func (v view) removable(m Member) bool {
	left := v.answering
	if m.Answers {
		left--
	}
	return v.voters > 1 && v.majority() && left >= (v.voters-1)/2+1
}

// shrink removes the voter that is missed least.
func (v view) shrink() Step {
	worst := slices.MinFunc(v.good, func(a, b Member) int {
		witness := order(v.machines[b.Host].Witness, v.machines[a.Host].Witness)
		if v.wanted > 1 { // as with candidates
			witness = -witness
		}
		return cmp.Or(order(a.Answers, b.Answers), witness, cmp.Compare(b.Host, a.Host))
	})
	why := fmt.Sprintf("%d members are enough for this cluster", v.wanted)
	if !v.removable(worst) {
		return Step{Why: why + "; one can go when the others answer"}
	}
	return Step{Kind: Remove, Host: worst.Host, Member: worst.ID, Why: why}
}

// grow adds a learner, if all that vote answer. From an odd number it begins only when there are two machines to add: an even number
// protects from no more than the odd one below it, and is one more to lose.
func (v view) grow() Step {
	missing := 1
	if v.voters%2 == 1 && len(v.bad) == 0 {
		missing = 2
	}
	why := fmt.Sprintf("the store wants %d members and has %d", v.wanted, len(v.good))
	switch {
	case v.answering < v.voters:
		return Step{Why: why + "; another one is added when all answer"}
	case len(v.candidates) < missing:
		return Step{Why: fmt.Sprintf("%s; %d more machines that answer are needed", why, missing-len(v.candidates))}
	}
	return Step{Kind: Add, Host: v.candidates[0].Host, Why: why}
}

// order sorts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
