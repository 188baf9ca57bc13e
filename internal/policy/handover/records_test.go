package handover

import (
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/ha"
)

// What the ends and the leader do to the VM's run record, each a function of one record: the explorer's transactions.

const (
	hostA inventory.HostID = "A"
	hostB inventory.HostID = "B"
	hostC inventory.HostID = "C"
)

// boots are B's, the first of them that on which it prepared.
var boots = [...]string{"boot 0", "boot 1", "boot 2", "boot 3"}

// theAttempt is the one that the explorer walks.
var theAttempt = Attempt{Migration: testID, Source: hostA, Target: hostB, Generation: 1, Boot: boots[0]}

// clearHeir is Attempt.ClearHeir, but that it burns one number only, however often it is asked for: the walk would not end otherwise.
func clearHeir(run inventory.VMRun) (inventory.VMRun, error) {
	if run.Owner == hostA && run.Heir.IsZero() && run.Generation > theAttempt.Generation {
		return run, nil
	}
	return theAttempt.ClearHeir(run)
}

// signB is what the store says of B's life.
func signB(w world) inventory.Sign {
	return inventory.Sign{Fenced: w.bFenced, BootID: boots[w.bBoots]}
}

// status is what the migration's record says to a target: that the source has ended it, or has released. Both are written after they are so; a record that
// is written later says no more than one that is read later.
func (l *lab) status(w world) inventory.MigrationStatus {
	s := inventory.MigrationStatus{Phase: inventory.Switchover, Released: w.msgs&msgRelease != 0}
	if a := l.sourceOf(w); a.Final() {
		s.Phase = a.Ends
	}
	return s
}

// foundA tells the machine of A's new agent what that finds.
func (l *lab) foundA(w world) world {
	q, rebooted := foundOfA[w.aQEMU], w.aBoot && w.aJournal == 0
	e := theAttempt.SourceFound(l.record(w), q, rebooted)
	e.Why = ""
	w = l.tellA(w, e)
	if more := theAttempt.SourceFound(inventory.VMRun{Owner: hostA}, q, rebooted); more != e && !l.sourceOf(w).Final() {
		w = l.newsA(w, more.Kind)
	}
	return w
}

var foundOfA = map[qemu]QEMU{
	copying: QEMUMigrates, stopped: QEMUMigrates, device: QEMUMigrates, complete: QEMUCompleted, switched: QEMUPull, pulled: QEMUPulled, alone: QEMURuns,
	gone: QEMUGone,
}

var foundOfB = map[qemu]QEMU{incoming: QEMUIncoming, loaded: QEMULoaded, running: QEMURuns, gone: QEMUGone}

// foundB is the same of B.
func (l *lab) foundB(w world) world {
	q, rebooted := foundOfB[w.bQEMU], w.bBoots > 0 && w.bJournal == 0
	switch {
	case w.pull && q == QEMULoaded:
		q = QEMUPull
	case w.pull && q == QEMURuns:
		q = QEMUPulls
	}
	e := theAttempt.TargetFound(l.record(w), q, rebooted)
	w = l.tellB(w, e)
	if more := theAttempt.TargetFound(inventory.VMRun{}, q, rebooted); more != e && !l.targetOf(w).Final() {
		w = l.newsB(w, more.Kind)
	}
	return w
}

// decides is what a leader makes of the world.
func (l *lab) decides(w world) ha.Decision {
	run := l.record(w)
	run.Wanted = inventory.PowerOn
	if l.ignoreHA {
		run.Generation, run.Heir = max(run.Generation, run.Heir.Generation), inventory.Heir{}
	}
	c := ha.NewCase(run, func(h inventory.HostID) ha.Life {
		if h == hostA && w.aFenced || h == hostB && w.bFenced {
			return ha.Dead
		}
		return ha.Living
	}, signB(w))
	c.OwnerDiscarded, c.HeirDiscarded = w.aDropped, w.msgs&msgReturned != 0
	return ha.Decide(c)
}
