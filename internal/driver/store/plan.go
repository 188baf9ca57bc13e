package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of plans.
const (
	// PlansOpenMax is how many plans may be open at once; a further one is refused.
	PlansOpenMax = 64
	// PlansKept is how many plans that are over stay in the store, PlanAgeMax how long.
	PlansKept  = 200
	PlanAgeMax = 24 * time.Hour
)

// Plans returns all plans as of one moment, in the order in which they were asked for.
func (s *Store) Plans(ctx context.Context) ([]inventory.Plan, error) {
	resp, err := s.get(ctx, rootPlan, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "plans", err)
	}
	all := make([]inventory.Plan, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		p, err := read(plans, string(kv.Key), kv)
		if err != nil {
			return nil, fault.Wrap("list", "plans", err)
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b inventory.Plan) int {
		return cmp.Or(a.Requested.Compare(b.Requested), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

// Plan returns one plan, or fault.NotFound.
func (s *Store) Plan(ctx context.Context, id inventory.PlanID) (inventory.Plan, error) {
	rec, revision, err := load(ctx, s, keyPlan(id), plans)
	if err == nil && revision == 0 {
		err = fault.New(fault.NotFound, "no plan %q", string(id))
	}
	return rec.value, err
}

// CreatePlan records a wish that the leader is to fulfil; id, state and steps are filled in. While a plan of the same kind about the same object
// is open that one is returned, whatever its arguments: the caller looks. PlansOpenMax plans that are open are fault.NoResources.
func (w *Writer) CreatePlan(ctx context.Context, p inventory.Plan) (inventory.Plan, error) {
	p.ID, p.State, p.Done, p.Note, p.Reason, p.Ended = inventory.NewPlanID(p.Kind, p.Object), inventory.PlanOpen, nil, "", "", time.Time{}
	if err := checkID("plan", p.ID); err != nil {
		return p, err
	}
	value, err := plans.pack(p)
	if err != nil {
		return p, err
	}
	for range attemptsMax {
		all, err := w.s.Plans(ctx)
		if err != nil {
			return p, err
		}
		open := 0
		for _, other := range all {
			switch {
			case other.State.Final():
			case other.ID == p.ID:
				return other, nil
			default:
				open++
			}
		}
		if open >= PlansOpenMax {
			return p, fault.New(fault.NoResources, "plan %s: %d others have not ended yet: try again later", p.ID, open)
		}
		old, revision, err := load(ctx, w.s, keyPlan(p.ID), plans)
		if err != nil {
			return p, err
		}
		if revision != 0 && !old.value.State.Final() {
			continue // made meanwhile
		}
		done, err := w.commit(ctx, []clientv3.Cmp{unchanged(keyPlan(p.ID), revision)}, clientv3.OpPut(keyPlan(p.ID), value))
		if err != nil {
			return p, fault.Wrap("record", "plan "+string(p.ID), err)
		}
		if done {
			return p, nil
		}
	}
	return p, fault.New(fault.Conflict, "plan %s was changed by others %d times meanwhile: try again", p.ID, attemptsMax)
}

// UpdatePlan changes a plan that is open, and writes the events in the same transaction, so that what is told happened once. A plan
// that is over is fault.Conflict. change may be called several times; its error ends the update and is returned as it is.
func (t *Term) UpdatePlan(ctx context.Context, id inventory.PlanID, change func(*inventory.Plan) error, events ...inventory.Event) (inventory.Plan, error) {
	told, err := putEvents(events)
	if err != nil {
		return inventory.Plan{}, err
	}
	e := edit[inventory.Plan]{
		what: "plan " + string(id), key: keyPlan(id), codec: plans, missing: fault.New(fault.NotFound, "no plan %q", string(id)),
		change: func(p *inventory.Plan) error {
			if p.State.Final() {
				return fault.New(fault.Conflict, "plan %s is over: it is %s", id, p.State)
			}
			return change(p)
		},
	}
	if len(told) > 0 {
		e.with = func(inventory.Plan) ([]clientv3.Cmp, []clientv3.Op) { return nil, told }
	}
	return apply(ctx, t.w, e)
}

// ForgetPlans removes plans that are over, beyond their number and age.
func (t *Term) ForgetPlans(ctx context.Context, now time.Time) error {
	all, err := t.w.s.Plans(ctx)
	if err != nil {
		return err
	}
	over := slices.DeleteFunc(all, func(p inventory.Plan) bool { return !p.State.Final() })
	slices.SortStableFunc(over, func(a, b inventory.Plan) int { return b.Ended.Compare(a.Ended) })
	for i, p := range over {
		if i < PlansKept && now.Sub(p.Ended) <= PlanAgeMax {
			continue
		}
		now, revision, err := load(ctx, t.w.s, keyPlan(p.ID), plans)
		if err != nil {
			return err
		}
		if revision == 0 || !now.value.State.Final() {
			continue // it was asked for again since
		}
		if _, err := t.w.commit(ctx, []clientv3.Cmp{unchanged(keyPlan(p.ID), revision)}, clientv3.OpDelete(keyPlan(p.ID))); err != nil {
			return err
		}
	}
	return nil
}

// putEvents returns what writes the events.
func putEvents(events []inventory.Event) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	for _, e := range events {
		if err := checkID("event", e.ID); err != nil {
			return nil, err
		}
		value, err := eventRecords.pack(e)
		if err != nil {
			return nil, err
		}
		ops = append(ops, clientv3.OpPut(keyEvent(e.ID), value))
	}
	return ops, nil
}
