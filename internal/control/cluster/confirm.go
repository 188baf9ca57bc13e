package cluster

import (
	"context"
	"fmt"
	"strings"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// confirmDead is the steps of that plan. The fence is Fencer's, which reads open plans, and the owners are Recoverer's: there is one place for
// each. The steps say when it is done.
var confirmDead = []Step{
	{"fence", awaitFence},
	{"reassign", awaitOwners},
}

// Steps returns the kinds of plans of this package.
func Steps() map[string][]Step {
	return map[string][]Step{authority.KindConfirmDead: confirmDead}
}

// awaitFence waits until the host is fenced, and gives up when it has given a sign of life since the word.
func awaitFence(ctx context.Context, term *store.Term, p inventory.Plan) error {
	renewals, err := term.Store().Renewals(ctx)
	if err != nil {
		return err
	}
	for _, r := range renewals {
		switch {
		case string(r.Host) != p.Object:
		case r.Fenced:
			return nil
		case !authority.Confirms(p, r):
			return Hopeless(fault.New(fault.Conflict, "host %s has given a sign of life since: it is not dead", p.Object))
		default:
			return Waiting("host %s is about to be fenced", p.Object)
		}
	}
	return nil // it was removed, and that is as dead
}

// awaitOwners waits until each VM of the host has a new owner, or a word why it has not.
func awaitOwners(ctx context.Context, term *store.Term, p inventory.Plan) error {
	vms, err := term.Store().VMs(ctx)
	if err != nil {
		return err
	}
	var waiting []string
	for _, vm := range vms {
		if string(vm.Run.Owner) == p.Object && vm.Run.Wanted == inventory.PowerOn && vm.Place.Blocked == "" {
			waiting = append(waiting, vm.Spec.Name)
		}
	}
	if len(waiting) > 0 {
		return Waiting("%d VMs wait for a new owner: %s", len(waiting), strings.Join(waiting[:min(len(waiting), 5)], ", "))
	}
	return nil
}

// TellPlan makes the event of a plan that has ended.
func TellPlan(p inventory.Plan) []inventory.Event {
	text := fmt.Sprintf("%s of %s, as %s asked: %s", p.Kind, p.Object, p.By, p.State)
	e := event(planEnded, p.Object, text)
	e.By = p.By
	if p.State == inventory.PlanFailed {
		e.Severity, e.Message = inventory.Warning, text+": "+p.Reason
	}
	return []inventory.Event{e}
}
