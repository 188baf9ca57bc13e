package cluster

import (
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// The kinds of events that the leader writes, each in the transaction of what it tells.
const (
	hostSilent   = "host.silent"   // no sign of life for so long that its VMs stand still
	hostBlocked  = "host.blocked"  // it is silent, and nobody can know whether its VMs are dead
	hostFenced   = "host.fenced"   // its VMs are dead, and others may run them
	hostBack     = "host.back"     // it gives signs of life again
	vmReassigned = "vm.reassigned" // it has a new owner, since its last one is dead
	planEnded    = "plan.ended"
)

func event(kind, object, message string) inventory.Event {
	now := time.Now()
	e := inventory.Event{ID: inventory.NewEventID(now), Time: now, Kind: kind, Severity: inventory.Warning, Object: object, ObjectName: object, Message: message}
	if kind == hostBack || kind == planEnded {
		e.Severity = inventory.Info
	}
	return e
}
