// Package ha decides what becomes of the VMs of hosts that are dead or silent: who may start them again, with which generation, or what
// stands against it (Decide), which host takes one (Choose, choose.go), and what that makes of the VM's records (Give). It is pure: facts in, a
// decision out.
package ha

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Life is what the leader knows of one end of a VM.
type Life string

// The lives. Dead needs proof: a fence transaction that was done, or, for a heir, a boot since it was named.
const (
	Living Life = "living" // its agent renews: what is left to do is that agent's
	Silent Life = "silent" // nobody knows
	Dead   Life = "dead"   // nothing of it runs, and nothing it wrote is under way
)

// Case is one VM as the store has it, read in one linearisable read, and the two hosts that may run it.
type Case struct {
	Run   inventory.VMRun
	Owner Life
	// Of the open hand-over; they count while an heir stands.
	Heir          Life
	HeirDiscarded bool // the heir has answered, for this migration, that it never ran the VM and never will
	// The owner has written into the migration's record that it gave its copy up for good: it waits for a new owner, though it lives.
	OwnerDiscarded bool
}

// NewCase gathers what the decision about a VM stands on. life says what is known of a host, heir is a sign of the heir's host; the words of both ends,
// HeirDiscarded and OwnerDiscarded, are the caller's to add.
func NewCase(run inventory.VMRun, life func(inventory.HostID) Life, heir inventory.Sign) Case {
	c := Case{Run: run, Owner: life(run.Owner), Heir: Living}
	if run.Heir.IsZero() {
		return c
	}
	c.Heir = life(run.Heir.Host)
	if _, lost := run.Heir.Lost(heir); lost {
		c.Heir = Dead
	}
	return c
}

// AsksOwner reports whether OwnerDiscarded makes a difference: the migration's record need not be read otherwise.
func (c Case) AsksOwner() bool { return !c.Run.Heir.IsZero() && c.Heir == Dead && c.Owner != Dead }

// Dead lists the hosts whose death a decision about the case stands on: whoever carries it out compares once more that they are dead
// (inventory.VMRun.Dead). A heir that has discarded need not stay dead: its word is final.
func (c Case) Dead() []inventory.HostID {
	var dead []inventory.HostID
	if c.Owner == Dead {
		dead = append(dead, c.Run.Owner)
	}
	if !c.Run.Heir.IsZero() && c.Heir == Dead && !c.HeirDiscarded {
		dead = append(dead, c.Run.Heir.Host)
	}
	return dead
}

// DecisionKind names what is to be done.
type DecisionKind string

// The decisions.
const (
	Leave      DecisionKind = "leave"       // nothing: who can act is there and will
	Restart    DecisionKind = "restart"     // some host becomes owner with Generation, and no heir stands any more
	Release    DecisionKind = "release"     // as Restart for a VM that is wanted off: an owner that can start it later
	Wait       DecisionKind = "wait"        // somebody is silent; Why says who is waited for
	AskDiscard DecisionKind = "ask-discard" // the owner is dead, the heir lives: it is asked for its final word
	TellOwner  DecisionKind = "tell-owner"  // the heir is dead, the owner lives: it is told, and decides by the hand-over's rules
)

// Decision is what is to be done about a VM.
type Decision struct {
	Kind       DecisionKind
	Generation inventory.Generation // of Restart and Release
	Wait       inventory.HostID     // of Wait: who is silent
}

// Decide says what is to be done. While an heir stands nobody starts the VM until each of owner and heir is dead or has discarded:
// docs/architecture.md, "The hand-over rules". That both have discarded is no case of its own: the owner that hears of the
// heir's word goes on by itself.
func Decide(c Case) Decision {
	next := c.Run.Generation + 2 // the number between is that of a migration's target, also while it is not named heir: it may be in a lock record
	if !c.Run.Heir.IsZero() && !defect.Seeded.HeirIgnored() {
		next = max(next, c.Run.Heir.Generation+1) // the heir's number is burnt
		switch {
		case c.OwnerDiscarded && c.Heir == Dead:
			return start(c.Run.Wanted, next)
		case c.Owner == Living && c.Heir == Dead:
			return Decision{Kind: TellOwner}
		case c.Owner == Living:
			return Decision{Kind: Leave}
		case c.Owner == Silent:
			return Decision{Kind: Wait, Wait: c.Run.Owner}
		case c.HeirDiscarded || c.Heir == Dead:
		case c.Heir == Silent:
			return Decision{Kind: Wait, Wait: c.Run.Heir.Host}
		default:
			return Decision{Kind: AskDiscard}
		}
	}
	switch c.Owner {
	case Living:
		if c.Run.OwnerGaveUp() && c.Run.Wanted == inventory.PowerOn {
			return start(c.Run.Wanted, next)
		}
		return Decision{Kind: Leave}
	case Silent:
		return Decision{Kind: Wait, Wait: c.Run.Owner}
	case Dead:
	}
	return start(c.Run.Wanted, next)
}

func start(wanted inventory.Power, next inventory.Generation) Decision {
	if wanted == inventory.PowerOn {
		return Decision{Kind: Restart, Generation: next}
	}
	return Decision{Kind: Release, Generation: next}
}

// Give carries Restart and Release out in the VM's records, which are those that the decision was taken on: a host becomes owner, and no heir stands any
// more.
func (d Decision) Give(run inventory.VMRun, place inventory.VMPlace, to inventory.HostID, why string, at time.Time) (inventory.VMRun, inventory.VMPlace) {
	from := run.Owner
	run.Owner, run.Generation, run.Heir = to, d.Generation, inventory.Heir{}
	place.Blocked, place.Since = "", time.Time{}
	if d.Kind == Restart {
		place.Restart = inventory.Restart{Generation: d.Generation, From: from, Why: why, At: at}
		place.Restarts++
	}
	return run, place
}
