package handover

import (
	"fmt"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// world is one instant of a small cluster with one migration in it: the machines of the two ends as production drives them, the
// actions they have not done yet, both QEMUs, the messages in flight, the journals, the store, both hosts' authority, and whatever
// else can start the VM. It is comparable and small, since the explorer keeps every one it has seen.
//
// Messages stay in flight for ever once sent: they may come late, twice, or never. What QEMU says comes in order, as late as
// it likes, and is lost with the agent. An agent that is killed restarts in the same step: one that was down for a while differs
// in nothing from one that heard nothing for that while. What nobody can see, such as a report, is left out.
type world struct {
	a, b           uint16   // interned Source and Target
	aActs, bActs   [6]uint8 // interned actions still to do, front first, 0 ends
	aNews, bNews   [6]uint8 // interned events on their way to the agent, front first
	aQEMU, bQEMU   qemu
	aAuth, bAuth   authority
	aFenced        bool // in its present epoch
	bFenced        bool
	aSettled       bool // fenced or rebooted since the heir was set, or said discarded: what the leader waits for
	bSettled       bool
	aStale, bStale bool // its memory is older than the disk
	loaded         bool // B has loaded once
	msgs           msg
	aJournal       log
	bJournal       log
	owner          byte // 'A', 'B', 'C'
	heir, heirs    bool // stands now, stood once
	cold           byte // where the VM was started without its memory: 0, 'A', 'B', 'C'
	spent          bool // the budget: one cancel by a user, one journal fault or one reboot in a run
	aBoot, bBoot   bool // rebooted: the journal was lost
	bad            fault
}

type fault uint8

const (
	fine fault = iota
	twoRunning
	staleA
	staleB
	violationA
	violationB
)

var faults = [...]string{
	"fine", "two running", "stale memory runs at A", "stale memory runs at B", "A reports a violation", "B reports a violation",
}

type qemu uint8

const (
	gone     qemu = iota
	copying       // A: migrates, vCPUs run
	stopped       // A: pre-switchover
	device        // A: device state goes over
	complete      // A: postmigrate
	alone         // A: runs, no migration
	incoming      // B
	loaded        // B: paused
	running       // B
)

type authority uint8

const (
	good  authority = iota
	short           // less than AuthorityMargin
	lost            // the warden has killed what ran there
)

func (a authority) left() time.Duration {
	if a == good {
		return AuthorityMargin
	}
	return 0
}

type msg uint8

const (
	msgRelease msg = 1 << iota
	msgDiscard
	msgRunning
	msgReturned // discarded too: the source makes no difference
	msgLost
)

var answers = map[Answer]msg{AnswerRunning: msgRunning, AnswerReturned: msgReturned, AnswerDiscarded: msgReturned, AnswerLost: msgLost}

type log uint8

var logBits = map[EntryKind]log{EntryReleased: 1, EntryReturned: 2, EntryResuming: 4, EntryDiscarded: 8}

const testID inventory.MigrationID = "mig-1"

func (l log) entries() []Entry {
	var list []Entry
	for _, kind := range []EntryKind{EntryReleased, EntryReturned, EntryResuming, EntryDiscarded} {
		if l&logBits[kind] != 0 {
			list = append(list, Entry{Migration: testID, Kind: kind})
		}
	}
	return list
}

// interned turns comparable values into small numbers and back; 0 is the zero value.
type interned[T comparable] struct {
	ids  map[T]int
	vals []T
}

func (in *interned[T]) id(v T) int {
	if in.ids == nil {
		var zero T
		in.ids, in.vals = map[T]int{zero: 0}, []T{zero}
	}
	id, ok := in.ids[v]
	if !ok {
		id = len(in.vals)
		in.ids[v], in.vals = id, append(in.vals, v)
	}
	return id
}

// rules are the machines as the explorer runs them, and what it allows others to do; a seeded defect replaces one of them.
type rules struct {
	source    func(Source, SourceEvent) (Source, []SourceAction)
	target    func(Target, TargetEvent) (Target, []TargetAction)
	restoreA  func(inventory.MigrationID, []Entry) Source
	restoreB  func(inventory.MigrationID, []Entry) Target
	ignoreHA  bool // HA starts the VM without waiting for the heir
	clearEver bool // the source's agent clears the heir whenever it likes
	secondTry bool // the source lets QEMU try again under the same migration id
	noBudget  bool // neither cancel nor journal faults nor reboots: a smaller walk
	noFences  bool // authority never ends: a smaller walk
}

func goodRules() rules {
	return rules{source: Source.Step, target: Target.Step, restoreA: RestoreSource, restoreB: RestoreTarget}
}

// lab holds the interned parts of all worlds of one exploration.
type lab struct {
	rules
	sources interned[Source]
	targets interned[Target]
	sActs   interned[SourceAction]
	tActs   interned[TargetAction]
	sNews   interned[SourceEvent]
	tNews   interned[TargetEvent]
}

func (l *lab) start() world {
	b := NewTarget(testID)
	b, _ = b.Step(TargetEvent{Kind: TargetPrepared})
	return world{
		a: l.source(NewSource(testID)), b: l.target(b), aQEMU: copying, bQEMU: incoming, owner: 'A', spent: l.noBudget,
	}
}

// source interns a Source without its words and with its counters cut short: unanswered releases only lead to a report, and the
// second failed resume is the last one.
func (l *lab) source(s Source) uint16 {
	s.Why, s.Sends = "", 0
	if s.Resumes > 0 {
		s.Resumes = ResumesMax - 1
	}
	return uint16(l.sources.id(s))
}

func (l *lab) target(t Target) uint16 {
	t.Why = ""
	return uint16(l.targets.id(t))
}

func (l *lab) sourceOf(w world) Source {
	return l.sources.vals[w.a]
}

func (l *lab) targetOf(w world) Target {
	return l.targets.vals[w.b]
}

// tellA gives A's machine an event; its queue of actions must be empty.
func (l *lab) tellA(w world, e SourceEvent) world {
	e.Authority = w.aAuth.left()
	next, actions := l.rules.source(l.sourceOf(w), e)
	w.a, w.aActs = l.source(next), [6]uint8{}
	i := 0
	for _, a := range actions {
		switch a.Kind {
		case SourceReport, RefuseCancel, FreeSource:
			continue
		case SendRelease:
			if w.msgs&msgRelease != 0 {
				continue
			}
		case SendDiscard:
			if w.msgs&msgDiscard != 0 {
				continue
			}
		case KillSource:
			if w.aQEMU == gone {
				continue
			}
		case ContinueSwitchover, CancelCopy, SourceJournal, ResumeHere, ClearHeir, RecordDiscarded, SourceViolation:
		}
		a.Why, a.Entry.Why = "", ""
		w.aActs[i] = uint8(l.sActs.id(a))
		i++
	}
	return w
}

func (l *lab) tellB(w world, e TargetEvent) world {
	e.Authority = w.bAuth.left()
	next, actions := l.rules.target(l.targetOf(w), e)
	w.b, w.bActs = l.target(next), [6]uint8{}
	i := 0
	for _, a := range actions {
		switch a.Kind {
		case FreeTarget, OpenPort:
			continue
		case KillTarget:
			if w.bQEMU == gone {
				continue
			}
		case SendAnswer:
			settles := a.Answer == AnswerDiscarded || a.Answer == AnswerReturned
			if w.msgs&answers[a.Answer] != 0 && (w.bSettled || !settles) {
				continue
			}
		case TargetJournal, Cont, WriteOwner, TargetViolation:
		}
		a.Why, a.Entry.Why = "", ""
		w.bActs[i] = uint8(l.tActs.id(a))
		i++
	}
	return w
}

func shift(a [6]uint8) (uint8, [6]uint8) {
	front := a[0]
	for i := 1; i < len(a); i++ {
		a[i-1] = a[i]
	}
	a[len(a)-1] = 0
	return front, a
}

// newsA puts an event of QEMU or of the store on its way to A's agent.
func (l *lab) newsA(w world, e SourceEventKind) world {
	push(&w.aNews, uint8(l.sNews.id(SourceEvent{Kind: e})))
	return w
}

func (l *lab) newsB(w world, e TargetEventKind) world {
	push(&w.bNews, uint8(l.tNews.id(TargetEvent{Kind: e})))
	return w
}

func push(queue *[6]uint8, id uint8) {
	for i := range queue {
		if queue[i] == id {
			return // the same news twice says no more than once
		}
		if queue[i] == 0 {
			queue[i] = id
			return
		}
	}
	panic("the queue of news is too short for this exploration")
}

func (l *lab) killA(w world) world {
	if w.aQEMU != gone {
		w.aQEMU = gone
		w = l.newsA(w, SourceGone)
	}
	return w
}

func (l *lab) killB(w world) world {
	if w.bQEMU != gone {
		w.bQEMU = gone
		w = l.newsB(w, TargetGone)
	}
	return w
}

// runA and runB let vCPUs run: the other side's memory is old from now on.
func runA(w world) world {
	w.aQEMU, w.bStale = alone, w.bStale || w.loaded
	if w.aStale {
		w.bad = staleA
	}
	return w
}

func runB(w world) world {
	w.bQEMU, w.aStale = running, true
	if w.bStale {
		w.bad = staleB
	}
	return w
}

func (w world) runsA() bool { return w.aQEMU == copying || w.aQEMU == alone }

// check names what is wrong with a world, if anything is.
func (w world) check() fault {
	n := 0
	for _, runs := range []bool{w.runsA(), w.bQEMU == running, w.cold != 0} {
		if runs {
			n++
		}
	}
	if n > 1 {
		return twoRunning
	}
	return w.bad
}

// settled reports whether the migration has ended well in this world: one copy runs, no heir stands, and no end that is able waits
// for anything.
func (l *lab) settled(w world) bool {
	if !w.runsA() && w.bQEMU != running && w.cold == 0 || w.heir {
		return false
	}
	a := w.aFenced || w.aActs[0] == 0 && l.sourceOf(w).Final()
	b := w.bFenced || w.bActs[0] == 0 && l.targetOf(w).Final()
	return a && b
}

func (w world) String() string {
	return fmt.Sprintf("A's QEMU %d, B's QEMU %d, owner %c, heir %v", w.aQEMU, w.bQEMU, w.owner, w.heir)
}
