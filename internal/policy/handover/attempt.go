package handover

import (
	"cmp"
	"errors"
	"fmt"

	failure "github.com/godwit-vm/godwit/internal/fault" // the tests have a fault of their own
	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// What the two ends of a hand-over do to the VM's run record, and what a read of it says to them. Each change is a function of the record as it is: the
// store applies it in a transaction that compares that record, and the epoch of the host that asks. The leader's part is policy/ha.

// ErrRefused is on the path of an error that says that these rules forbid a change of the run record, whenever it is asked for again. The kind is
// fault.Conflict, as it is of a writer whose epoch is over, which says nothing about the record.
var ErrRefused = errors.New("not by the rules of the hand-over")

func refused(format string, args ...any) error {
	return failure.New(failure.Conflict, "%s: %w", fmt.Sprintf(format, args...), ErrRefused)
}

// Attempt is one hand-over as the records have it: who gives which generation of the VM to whom.
type Attempt struct {
	Migration      inventory.MigrationID
	Source, Target inventory.HostID
	Generation     inventory.Generation // of the VM when it began: the heir has the next one. 0: later than all that this attempt had
	Boot           string               // of the kernel on which the target prepared, as far as the source knows: the heir is that of this boot
}

// NewAttempt returns the attempt of a migration that begins, of a VM with this run record.
func NewAttempt(m inventory.Migration, run inventory.VMRun) Attempt {
	return Attempt{Migration: m.ID, Source: m.Spec.Source, Target: m.Spec.Target, Generation: run.Generation}
}

// RestoreAttempt returns the attempt of a migration that an agent finds after its restart. No record keeps the generation that it began with; while
// the VM is the source's it is the VM's, as nobody changes it under an heir. The target has the next one, unless the leader gave the VM to it.
func RestoreAttempt(m inventory.Migration, vm inventory.VM) Attempt {
	a := NewAttempt(m, vm.Run)
	switch {
	case vm.Run.Owner == a.Source:
	case vm.Run.Owner == a.Target && vm.Run.Generation > 0 && !vm.Place.Restart.Gave(vm.Run):
		a.Generation--
	default:
		a.Generation = 0
	}
	return a
}

// SetHeir names the target heir, if the source is owner of the generation that it began with and no other heir stands. By the boot on which the target
// prepared others can tell later that nothing of this migration runs there any more; a source that does not know it takes the one in the sign of the
// target's host. Naming it again changes nothing; a dead one is not named, nor one that was booted since it prepared: what it says of itself, "lost", is no
// final word, and with the source's end nobody would give one.
func (a Attempt) SetHeir(run inventory.VMRun, target inventory.Sign) (inventory.VMRun, error) {
	heir := inventory.Heir{Host: a.Target, Generation: a.Generation + 1, Migration: a.Migration, BootID: cmp.Or(a.Boot, target.BootID)}
	named := run.Heir
	named.BootID = heir.BootID
	why, lost := heir.Lost(target)
	switch {
	case run.Owner != a.Source:
		return run, refused("host %s owns it", run.Owner)
	case named == heir:
		return run, nil // by a call whose answer was lost
	case lost:
		return run, refused("host %s is dead: %s", a.Target, why)
	case !run.Heir.IsZero():
		return run, refused("host %s is heir by migration %s", run.Heir.Host, run.Heir.Migration)
	case run.Generation != a.Generation:
		return run, refused("it was started again meanwhile, as generation %d", run.Generation)
	}
	run.Heir = heir
	return run, nil
}

// ClearHeir ends the attempt in the record of a VM that the source owns: its heir goes, and its generation is burnt, also when it ended before the heir was
// named, since the target may have made its lock record with it. Another attempt's heir stays. It is refused when the source is owner no more.
func (a Attempt) ClearHeir(run inventory.VMRun) (inventory.VMRun, error) {
	switch {
	case run.Owner != a.Source:
		return run, refused("host %s owns it", run.Owner)
	case run.Heir.IsZero() || run.Heir.Migration == a.Migration:
		run.Generation++
		run.Heir = inventory.Heir{}
	}
	return run, nil
}

// TakeOwner makes the target owner with the heir's generation, if it is heir by this attempt. Being owner by it changes nothing; being owner of another
// generation is no reason to go on, since the leader gave that one, and the memory here is older than the disk.
func (a Attempt) TakeOwner(run inventory.VMRun) (inventory.VMRun, error) {
	generation := a.Generation + 1
	switch {
	case run.Owner == a.Target && run.Generation == generation:
		return run, nil // by a call whose answer was lost
	case run.Heir.Host == a.Target && run.Heir.Migration == a.Migration && run.Heir.Generation == generation:
	case !defect.Seeded.OwnerAfterCont() && !defect.Seeded.OldGeneration():
		return run, refused("host %s is owner of generation %d, and this host is not heir by migration %s", run.Owner, run.Generation, a.Migration)
	}
	run.Owner, run.Generation, run.Heir = a.Target, generation, inventory.Heir{}
	return run, nil
}

// owner is the store's word about an owner that is not the source with what it began with: the zero event when it still is.
func (a Attempt) owner(run inventory.VMRun) SourceEvent {
	switch {
	case run.Generation > a.Generation+1: // later than the heir's: the leader has given the VM away, be it to the source
		return SourceEvent{Kind: SourceOwnerOther, Why: fmt.Sprintf("the store names %s owner by generation %d", run.Owner, run.Generation)}
	case run.Owner == a.Source:
		return SourceEvent{}
	case run.Owner == a.Target:
		return SourceEvent{Kind: SourceOwnerTarget}
	}
	return SourceEvent{Kind: SourceOwnerOther, Why: "the store names " + string(run.Owner) + " owner"}
}

// Reads reports whether a source in this state asks the store at each tick, for SourceReads.
func (s SourceState) Reads() bool {
	switch s {
	case SourceDone, SourceReleased, SourceMoved, SourceWithdrawing, SourceDropped, SourceSwitched, SourceServing:
		return true
	case SourceCopying, SourceGate, SourceSwitching, SourceAborting, SourceKeeping, SourceResuming, SourceEnding, SourceAdopted, SourceOver:
	}
	return false
}

// SourceReads returns the events that a read of the store is to a source: the run record, and a sign of the target's host that was read no later.
// state is that when it asked. It asks in the states that Reads names, and in ending when ClearHeir was refused.
func (a Attempt) SourceReads(state SourceState, run inventory.VMRun, target inventory.Sign) []SourceEvent {
	var told []SourceEvent
	if state != SourceDone {
		switch e := a.owner(run); {
		case e.Kind != "":
			told = append(told, e)
		case run.Heir.Migration != a.Migration && state != SourceEnding:
			told = append(told, SourceEvent{Kind: SourceHeirCleared})
		}
	}
	if state == SourceDropped || state == SourceEnding || run.Heir.Migration != a.Migration {
		return told
	}
	if why, lost := run.Heir.Lost(target); lost {
		told = append(told, SourceEvent{Kind: SourceTargetFenced, Why: why})
	}
	return told
}

// SourceHears returns the event that the target's answer to a discard is to the source. An answer other than that it never ran there may come of a fence that
// this host has not heard of, after which the leader gave the VM to that host or another: then the store's word comes first. run is the run record, read after
// the answer came; nobody needs it for AnswerDiscarded.
func (a Attempt) SourceHears(answer Answer, run inventory.VMRun) SourceEvent {
	if e := a.owner(run); answer != AnswerDiscarded && e.Kind == SourceOwnerOther {
		return e
	}
	return SourceEvent{Kind: SourceAnswered, Answer: answer}
}

// TargetSettled returns the final word of a host whose part in the attempt is over as it is the VM's owner; ok is false when it is not. One that the leader gave
// the VM to does not have it by this attempt: whatever of it was there is gone.
func (a Attempt) TargetSettled(run inventory.VMRun) (word Answer, ok bool) {
	switch {
	case run.Owner != a.Target:
		return "", false
	case a.Generation != 0 && run.Generation == a.Generation+1:
		return AnswerRunning, true
	}
	return AnswerLost, true
}

// LeftBehind reports whether a QEMU that a restarted agent finds on the VM's owner is of an attempt to which the agent before put no end, when the leader gave
// the VM to this very host: it is of no use, and its memory may be older than the disk. One that has loaded may also be the VM's own, which a user has paused
// after a migration: then the VM was not given here to be started, and is wanted on. While an heir stands the owner is a source, and has the VM.
func LeftBehind(vm inventory.VM, q QEMU) bool {
	given := vm.Place.Restart.Gave(vm.Run) || vm.Run.Wanted != inventory.PowerOn
	return given && vm.Run.Heir.IsZero() && (q == QEMUIncoming || q == QEMULoaded || q == QEMUPull)
}

// Reads reports whether a target in this state asks the store at each tick, for TargetReads.
func (s TargetState) Reads() bool { return s == TargetIncoming || s == TargetLoadedUp }

// TargetReads returns the event that a read of the store is to a target, the zero event for none: the run record, and the migration's status that was read
// no later. A release in that status counts only while the store has given the VM to nobody else. The event is for a machine that is in that state still: one
// that has gone on meanwhile may have become owner by what was read.
func (a Attempt) TargetReads(state TargetState, run inventory.VMRun, status inventory.MigrationStatus) TargetEvent {
	switch {
	case !state.Reads():
	case status.Phase.Final():
		return TargetEvent{Kind: TargetOwnerRefused, Why: "the migration is over: " + status.Phase.String()}
	case run.Owner != a.Source && run.Heir.Migration != a.Migration && !defect.Seeded.OwnerAfterCont():
		// The leader has given the VM away, perhaps to this host, whose loop of it must not wait for a source that is dead.
		return TargetEvent{Kind: TargetOwnerRefused, Why: "the store names " + string(run.Owner) + " owner"}
	case status.Released && state == TargetLoadedUp:
		return TargetEvent{Kind: TargetReleased, Why: "by the migration's record"}
	}
	return TargetEvent{}
}

// Record writes into a migration's status what the source's action says of it: of SourceReport and RecordDiscarded, the others say nothing.
func (a SourceAction) Record(s *inventory.MigrationStatus) {
	switch a.Kind { //nolint:exhaustive // the others are not about the record
	case SourceReport:
		s.Phase, s.Reason = a.Phase, a.Why
		s.Released = s.Released || a.Phase == inventory.Released // the target acts on it; undecided alone is no release
	case RecordDiscarded:
		s.Reason, s.SourceDiscarded = a.Why, true
	}
}

// QEMU is what a restarted agent finds of the QEMU that an earlier one drove.
type QEMU string

// What is found. Of a target, runs is all that is neither incoming nor loaded: vCPUs run, or ran and were stopped by what the guest did or met.
const (
	QEMUGone      QEMU = "gone"
	QEMURuns      QEMU = "runs"      // no migration is under way
	QEMUMigrates  QEMU = "migrates"  // source: a migration is under way
	QEMUCompleted QEMU = "completed" // source: it completed a migration, vCPUs stopped
	QEMUIncoming  QEMU = "incoming"  // target: it has not loaded everything
	QEMULoaded    QEMU = "loaded"    // target: it has loaded and is stopped
	QEMUPull      QEMU = "pull"      // post-copy: it has switched: the target has pages to get; the target's vCPUs are stopped
	QEMUPulls     QEMU = "pulls"     // post-copy, target: the same, and its vCPUs run
	QEMUPulled    QEMU = "pulled"    // post-copy, source: it completed a migration, the last of it by a pull
)

// SourceFound returns the first event of a restored source: the store's word about a new owner, else what is found of QEMU. rebooted says that the host was
// booted since the attempt began, so that the journal is lost. A source that is not final after the store's word, as in post-copy, is told of QEMU next: by
// this function with a record that names it owner.
func (a Attempt) SourceFound(run inventory.VMRun, q QEMU, rebooted bool) SourceEvent {
	if run.Owner != a.Source {
		return a.owner(run)
	}
	e := SourceEvent{Kind: SourceFoundRunning}
	switch q {
	case QEMUGone:
		e.Kind = SourceFoundGone
		if rebooted {
			e.Kind = SourceFoundRebooted
		}
	case QEMUMigrates:
		e.Kind = SourceFoundCopying
	case QEMUCompleted:
		e.Kind = SourceFoundDone
	case QEMUPull:
		e.Kind = SourceFoundPull
	case QEMUPulled:
		e.Kind = SourceFoundPulled
	case QEMURuns, QEMUIncoming, QEMULoaded, QEMUPulls:
	}
	return e
}

// TargetFound returns the first event of a restored target. TargetOwnerWritten says that the VM is this host's, by the attempt or by the leader: nothing of
// the attempt is left to be done here, but in post-copy, where what is found of QEMU is told next as in SourceFound.
func (a Attempt) TargetFound(run inventory.VMRun, q QEMU, rebooted bool) TargetEvent {
	if run.Owner == a.Target {
		return TargetEvent{Kind: TargetOwnerWritten}
	}
	e := TargetEvent{Kind: TargetFoundRunning}
	switch q {
	case QEMUGone:
		e.Kind = TargetFoundGone
		if rebooted {
			e.Kind = TargetFoundRebooted
		}
	case QEMUIncoming:
		e.Kind = TargetFoundIncoming
	case QEMULoaded:
		e.Kind = TargetFoundLoaded
	case QEMUPull:
		e.Kind = TargetFoundPull
	case QEMUPulls:
		e.Kind = TargetFoundPulling
	case QEMURuns, QEMUMigrates, QEMUCompleted, QEMUPulled:
	}
	return e
}
