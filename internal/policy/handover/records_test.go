package handover

import (
	"errors"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/ha"
)

// What the ends and the leader do to the VM's run record, each a function of one record: the explorer's transactions.

const (
	hostA inventory.HostID = "A"
	hostB inventory.HostID = "B"
	hostC inventory.HostID = "C"
)

var errRefused = errors.New("refused")

// setHeir names B heir with the next generation.
func setHeir(run inventory.VMRun) (inventory.VMRun, error) {
	if run.Owner != hostA || !run.Heir.IsZero() {
		return run, errRefused
	}
	run.Heir = inventory.Heir{Host: hostB, Generation: run.Generation + 1, Migration: testID}
	return run, nil
}

// clearHeir takes that back; the number is burnt.
func clearHeir(run inventory.VMRun) (inventory.VMRun, error) {
	if run.Owner != hostA {
		return run, errRefused
	}
	if run.Heir.Migration == testID {
		run.Generation, run.Heir = run.Heir.Generation, inventory.Heir{}
	}
	return run, nil
}

// takeOwner makes B owner with the heir's generation.
func takeOwner(run inventory.VMRun) (inventory.VMRun, error) {
	switch {
	case run.Owner == hostB:
		return run, nil
	case run.Heir.Migration == testID:
		run.Owner, run.Generation, run.Heir = hostB, run.Heir.Generation, inventory.Heir{}
		return run, nil
	case defect.Seeded.OldGeneration():
		run.Owner, run.Generation, run.Heir = hostB, 2, inventory.Heir{}
		return run, nil
	}
	return run, errRefused
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
