package store_test

import (
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A plan is there once while it is open, only the leader goes on with it, and one that is over makes room for the next.
func TestPlans(t *testing.T) {
	s, w := start(t)
	wish := inventory.Plan{Kind: "host.remove", Object: "host-2", Arguments: map[string]string{"force": "yes"}, By: "alice", Requested: time.Now().UTC()}
	p, err := w.CreatePlan(t.Context(), wish)
	must(t, err)
	if p.ID != "host.remove:host-2" || p.State != inventory.PlanOpen {
		t.Fatalf("plan %+v", p)
	}
	again, err := w.CreatePlan(t.Context(), inventory.Plan{Kind: "host.remove", Object: "host-2", By: "bob"})
	must(t, err)
	if again.By != "alice" || again.Arguments["force"] != "yes" || !again.Requested.Equal(wish.Requested) {
		t.Errorf("a second wish gave %+v", again)
	}
	term, err := s.Lead(t.Context(), "host-1", w.Epoch())
	must(t, err)
	_, err = term.UpdatePlan(t.Context(), p.ID, func(p *inventory.Plan) error {
		p.Done = append(p.Done, "first")
		return nil
	}, inventory.Event{ID: "ev-1", Kind: "plan.step"})
	must(t, err)
	_, err = term.UpdatePlan(t.Context(), p.ID, func(p *inventory.Plan) error {
		p.State, p.Ended = inventory.PlanDone, time.Now().Add(-2*store.PlanAgeMax)
		return nil
	})
	must(t, err)
	_, err = term.UpdatePlan(t.Context(), p.ID, func(*inventory.Plan) error { return nil })
	want(t, fault.Conflict, err)
	if found, err := s.Plan(t.Context(), p.ID); err != nil || !found.DidStep("first") || found.DidStep("second") {
		t.Errorf("plan %+v, %v", found, err)
	}
	if events, err := s.Events(t.Context()); err != nil || len(events) != 1 {
		t.Errorf("events %v, %v", events, err)
	}
	must(t, term.ForgetPlans(t.Context(), time.Now()))
	_, err = s.Plan(t.Context(), p.ID)
	want(t, fault.NotFound, err)
	for i := range store.PlansOpenMax {
		_, err := w.CreatePlan(t.Context(), inventory.Plan{Kind: "host.remove", Object: string(rune('a' + i))})
		must(t, err)
	}
	_, err = w.CreatePlan(t.Context(), wish)
	want(t, fault.NoResources, err)
	term.End()
	_, err = term.UpdatePlan(t.Context(), "host.remove:a", func(p *inventory.Plan) error { p.Note = "late"; return nil })
	want(t, fault.Conflict, err)
}
