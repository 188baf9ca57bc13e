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

// theAttempt is the one that the explorer walks.
var theAttempt = Attempt{Migration: testID, Source: hostA, Target: hostB, Generation: 1}

// clearHeir is Attempt.ClearHeir, but that it burns one number only, however often it is asked for: the walk would not end otherwise.
func clearHeir(run inventory.VMRun) (inventory.VMRun, error) {
	if run.Owner == hostA && run.Heir.IsZero() && run.Generation > theAttempt.Generation {
		return run, nil
	}
	return theAttempt.ClearHeir(run)
}

// decides is what a leader makes of the world.
func (l *lab) decides(w world) ha.Decision {
	life := func(fenced bool) ha.Life {
		if fenced {
			return ha.Dead
		}
		return ha.Living
	}
	c := ha.Case{
		Run: l.record(w), Owner: ha.Living, Heir: life(w.bFenced || w.bBoot), OwnerDiscarded: w.aDropped, HeirDiscarded: w.msgs&msgReturned != 0,
	}
	c.Run.Wanted = inventory.PowerOn
	switch c.Run.Owner {
	case hostA:
		c.Owner = life(w.aFenced)
	case hostB:
		c.Owner = life(w.bFenced)
	}
	if l.ignoreHA {
		c.Run.Generation, c.Run.Heir = max(c.Run.Generation, c.Run.Heir.Generation), inventory.Heir{}
	}
	return ha.Decide(c)
}
