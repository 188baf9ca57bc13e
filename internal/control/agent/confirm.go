package agent

import (
	"context"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// The times of an operator's word.
const (
	confirmMax   = 20 * time.Second // after which the caller is told how far it is
	confirmEvery = 200 * time.Millisecond
)

// ConfirmDead takes the caller's word that a host is off and stays off: the leader fences it and gives its VMs new owners. It returns when that
// is done, or after confirmMax with the plan as it is then. A host that gives a sign of life is refused with every reason
// (fault.Conflict), and one that is fenced already is no error. Who said it is in the events.
func (a *Agent) ConfirmDead(ctx context.Context, host inventory.HostID) (inventory.Plan, error) {
	renewal, err := a.renewalOf(ctx, host)
	if err != nil {
		return inventory.Plan{}, err
	}
	if renewal.Fenced {
		return inventory.Plan{Kind: authority.KindConfirmDead, Object: string(host), State: inventory.PlanDone, Note: "it was fenced already"}, nil
	}
	h, err := a.Store.Host(ctx, host)
	if err != nil && !fault.Is(err, fault.NotFound) { // one that has joined and never started says nothing of itself
		return inventory.Plan{}, err
	}
	word := authority.Word{Host: host, Asked: a.Host(), Standing: authority.Standing(h.Standing.State)}
	if h.Spec.Address != "" && host != a.Host() && a.Reachable(ctx, h.Spec.Address) {
		word.Answers = h.Spec.Address
	}
	if word.Leader, err = a.Store.Leader(ctx); err != nil && !fault.Is(err, fault.NotFound) {
		return inventory.Plan{}, err
	}
	if err := fault.Refuse(fault.Conflict, word.Against()); err != nil {
		return inventory.Plan{}, fault.Wrap("confirm death of", "host "+string(host), err)
	}
	var plan inventory.Plan
	err = a.tasks.Run(ctx, authority.KindConfirmDead, string(host), string(host), func(ctx context.Context, _ *task.Task) (err error) {
		plan, err = a.writer.CreatePlan(ctx, authority.ConfirmPlan(renewal, caller(ctx), time.Now().UTC()))
		if err != nil {
			return err
		}
		plan, err = a.awaitPlan(ctx, plan)
		return err
	})
	return plan, err
}

// renewalOf returns the last renewal of a host of the cluster.
func (a *Agent) renewalOf(ctx context.Context, host inventory.HostID) (inventory.Renewal, error) {
	all, err := a.Store.Renewals(ctx)
	if err != nil {
		return inventory.Renewal{}, err
	}
	for _, r := range all {
		if r.Host == host {
			return r, nil
		}
	}
	return inventory.Renewal{}, fault.New(fault.NotFound, "no host %q: see godwit host ls", string(host))
}

// awaitPlan waits for the end of a plan, confirmMax at most. One that failed is fault.Conflict.
func (a *Agent) awaitPlan(ctx context.Context, plan inventory.Plan) (inventory.Plan, error) {
	deadline := time.After(confirmMax)
	for {
		now, err := a.Store.Plan(ctx, plan.ID)
		if err != nil {
			return plan, err
		}
		plan = now
		switch plan.State {
		case inventory.PlanDone:
			return plan, nil
		case inventory.PlanFailed:
			return plan, fault.New(fault.Conflict, "%s", plan.Reason)
		case inventory.PlanOpen:
		}
		select {
		case <-time.After(confirmEvery):
		case <-deadline:
			return plan, nil
		case <-ctx.Done():
			return plan, fault.New(fault.Canceled, "plan %s goes on: %w", plan.ID, ctx.Err())
		}
	}
}
