package handover

import (
	"fmt"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// world is one instant of a small cluster with one migration in it: the machines of the two ends as production drives them, the
// actions they have not done yet, both QEMUs, the messages in flight, the journals, the store, both hosts' authority, and whatever
// else can start the VM. It is comparable and small, since the explorer keeps every one it has seen.
//
// Messages stay in flight for ever once sent: they may come late, twice, or never. What QEMU and the store say comes in order, as late as
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
	aDropped       bool // A's word in the record that it will never run the VM
	aStale, bStale bool // its memory is older than the disk
	loaded         bool // B has loaded once: all of it, or in post-copy what its vCPUs need to run
	parted         bool // post-copy: A's QEMU has switched
	pull           bool // a part of B's memory is at A still
	cut            bool // the stream of the pull is broken
	listens        bool // B's QEMU waits for a new one
	msgs           msg
	aJournal       log
	bJournal       log
	run            uint8 // interned inventory.VMRun
	heirs          bool  // an heir stood once
	cold           byte  // where the VM was started without its memory: 0, 'A', 'B', 'C'
	left           uint8 // the budget: how many more faults may come
	aBoot          bool  // rebooted since the migration was prepared: the journal was lost
	bBoots         uint8 // how often B was
	aHurt, bHurt   bool  // a QEMU or a host of this end was lost, or refused to go on
	aHas           bool  // A's host holds what a VM needs: run directory, port, lock record
	bHas           made  // the same of B's host
	late           lateWrite
	seen           uint8 // the run record that a late restart was decided on
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
	memoryLost
	sourceLost
	numberReused
)

var faults = [...]string{
	"fine", "two running", "stale memory runs at A", "stale memory runs at B", "A reports a violation", "B reports a violation",
	"memory lost: the VM starts cold, and no QEMU and no host was lost", "source lost before the release: nothing was wrong with it",
	"generation used twice",
}

// made is what was made for the VM on B's host.
type made uint8

const (
	nothing  made = iota
	reserved      // lock record, run directory, and a port that takes forwarded frames only
	open          // with a port for everybody
)

// lateWrite is a write to the store that was sent and is done later, or never: whoever sent it goes on without its answer, or is gone.
type lateWrite uint8

const (
	noWrite lateWrite = iota
	lateClear
	lateOwner
	lateRestart // of an earlier leader: the VM goes to C
)

type qemu uint8

const (
	gone     qemu = iota
	copying       // A: migrates, vCPUs run
	stopped       // A: pre-switchover
	device        // A: device state goes over
	complete      // A: postmigrate
	alone         // A: runs, no migration
	incoming      // B
	switched      // A: post-copy, its vCPUs never run again, it has pages of B's
	pulled        // A: postmigrate after that
	loaded        // B: paused
	running       // B
)

type authority uint8

const (
	good  authority = iota
	short           // less than AuthorityMargin
	lost            // the warden has killed what ran there
	dead            // the host never comes back
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
	msgPullLost
	msgPulled
)

var answers = map[Answer]msg{
	AnswerRunning: msgRunning, AnswerPulled: msgPulled, AnswerReturned: msgReturned, AnswerDiscarded: msgReturned, AnswerLost: msgLost,
}

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
	hasty     bool // B is told that A is lost before its QEMU was asked whether it is whole
	unburnt   bool // the generation of an attempt that failed is given again
	trustPlan bool // a leader's write is not compared with what it was decided on
	clearEver bool // the source's agent clears the heir whenever it likes
	secondTry bool // the source lets QEMU try again under the same migration id
	noGap     bool // the leader gives the number that a target has whose heir was not named
	credulous bool // whoever owns the VM says that it has it by the migration, and the source believes it
	keepsLeft bool // a restarted target takes what a migration left for the VM's own
	walk
}

// walk is what may happen in an exploration.
type walk struct {
	mode     inventory.Mode
	budget   uint8 // how many faults may come
	free     bool  // those that steps_test.go names cost nothing
	noFences bool  // authority never ends
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
	runs    interned[inventory.VMRun]
}

func (l *lab) start() world {
	a, b := NewSource(testID), NewTarget(testID)
	a.Mode, b.Mode = l.mode, l.mode
	b, _ = b.Step(TargetEvent{Kind: TargetPrepared})
	w := world{a: l.source(a), b: l.target(b), aQEMU: copying, bQEMU: incoming, left: l.budget, aHas: true, bHas: reserved}
	return l.stored(w, inventory.VMRun{Owner: hostA, Generation: 1})
}

// stored returns the world with another run record.
func (l *lab) stored(w world, run inventory.VMRun) world {
	w.run = uint8(l.runs.id(run))
	return w
}

// record is the VM's run record, and owner whom it names.
func (l *lab) record(w world) inventory.VMRun { return l.runs.vals[w.run] }

func (l *lab) owner(w world) inventory.HostID { return l.runs.vals[w.run].Owner }

func (l *lab) heir(w world) bool { return !l.runs.vals[w.run].Heir.IsZero() }

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
		case SourceReport, RefuseCancel:
			continue
		case FreeSource:
			if !w.aHas && w.aJournal == 0 {
				continue
			}
		case SendPullLost:
			if w.msgs&msgPullLost != 0 {
				continue
			}
		case ResumePull:
			if !w.cut || !w.listens {
				continue
			}
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
		case FreeTarget:
			if w.bHas == nothing {
				continue
			}
		case OpenPort:
			if w.bHas == open {
				continue
			}
		case RecoverPull:
			if !w.cut || w.listens {
				continue
			}
		case KillTarget:
			if w.bQEMU == gone {
				continue
			}
		case SendAnswer:
			if w.msgs&answers[a.Answer] != 0 {
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
	if w.cold == 'A' {
		w.cold = 0
	}
	if w.aQEMU != gone {
		w.aQEMU = gone
		w = l.newsA(w, SourceGone)
		w = l.broken(w)
	}
	return w
}

func (l *lab) killB(w world) world {
	if w.cold == 'B' {
		w.cold = 0
	}
	if w.bQEMU != gone {
		w.bQEMU, w.listens = gone, false
		w = l.newsB(w, TargetGone)
		w = l.broken(w)
	}
	return w
}

// broken is the end of the pull's stream, if there is one. What is on its way to B before its vCPUs could run comes once only: without it
// B's QEMU ends.
func (l *lab) broken(w world) world {
	switch {
	case w.loaded && w.pull && !w.cut:
		w.cut = true
		if w.aQEMU == switched {
			w = l.newsA(w, SourcePullPaused)
		}
		if w.bQEMU != gone {
			w = l.newsB(w, TargetPullPaused)
		}
	case l.mode == inventory.PostCopy && (w.aQEMU == copying || w.aQEMU == stopped || w.aQEMU == device):
		w.cut = true
	case w.aQEMU == switched && w.bQEMU == incoming:
		w.bHurt = true
		w = l.killB(w)
	}
	return w
}

// mended is a pull that goes on. News of the pause that did not come yet are of no use any more.
func (l *lab) mended(w world) world {
	w.cut, w.listens = false, false
	if !drop(&w.aNews, uint8(l.sNews.id(SourceEvent{Kind: SourcePullPaused}))) {
		w = l.newsA(w, SourcePull)
	}
	if !drop(&w.bNews, uint8(l.tNews.id(TargetEvent{Kind: TargetPullPaused}))) {
		w = l.newsB(w, TargetPull)
	}
	return w
}

// drop takes an event out of a queue of news; it reports whether it was there.
func drop(queue *[6]uint8, id uint8) bool {
	at := slices.Index(queue[:], id)
	if at < 0 {
		return false
	}
	copy(queue[at:], queue[at+1:])
	queue[len(queue)-1] = 0
	return true
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

// settled reports whether the migration has ended well in this world: one copy runs and is whole, no heir stands, no end that is able
// waits for anything, and nothing is left that nobody needs.
func (l *lab) settled(w world) bool {
	if !w.runsA() && w.bQEMU != running && w.cold == 0 || w.bQEMU == running && w.pull || l.heir(w) || w.late != noWrite {
		return false
	}
	a := w.aFenced || w.aAuth == dead || w.aActs[0] == 0 && l.sourceOf(w).Final() && !l.leaksA(w)
	b := w.bFenced || w.bAuth == dead || w.bActs[0] == 0 && l.targetOf(w).Final() && !l.leaksB(w)
	return a && b
}

// leaksA reports whether A's host, which is back or was never away, keeps what it must not, or lacks what its VM needs. What is left of
// an ended QEMU where the VM is at home is taken up by its next start, and so is the journal: its entries are of a migration that is over.
func (l *lab) leaksA(w world) bool {
	if l.owner(w) == hostA {
		return w.runsA() && !w.aHas || w.aQEMU != gone && !w.runsA()
	}
	return w.aQEMU != gone || w.aHas || w.aJournal != 0
}

// leaksB is the same of B's host. Its journal stays, as its discard may be asked for as long as the migration's record is there.
func (l *lab) leaksB(w world) bool {
	if l.owner(w) == hostB {
		return w.bQEMU == running && w.bHas != open || w.bQEMU != gone && w.bQEMU != running
	}
	return w.bQEMU != gone || w.bHas != nothing
}

func (l *lab) tell(w world) string {
	return fmt.Sprintf("A %s, QEMU %d, has %v; B %s, QEMU %d, has %d, pulls %v; owner %s, heir %v, cold %q",
		l.sourceOf(w).State, w.aQEMU, w.aHas, l.targetOf(w).State, w.bQEMU, w.bHas, w.pull, l.owner(w), l.heir(w), w.cold)
}
