package cluster_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A leader is killed before and after each of its transactions, one after the other: the plan ends, its steps are taken in order, what they do is
// done once, and one event tells of the end.
func TestPlanSurvivesItsLeaders(t *testing.T) {
	s := storetest.Open(t)
	w := writer(t, s, "host-1")
	var mu sync.Mutex
	var taken []string
	step := func(name string) cluster.Step {
		return cluster.Step{Name: name, Do: func(ctx context.Context, term *store.Term, p inventory.Plan) error {
			mu.Lock()
			defer mu.Unlock()
			taken = append(taken, name)
			// A network that is there already is what an earlier leader made.
			err := term.Writer().CreateNetwork(ctx, inventory.Network{ID: inventory.NetworkID(p.Object + "-" + name)})
			if fault.Is(err, fault.Exists) {
				err = nil
			}
			return err
		}}
	}
	kinds := map[string][]cluster.Step{"test.three": {step("a"), step("b"), step("c")}}
	tell := func(p inventory.Plan) []inventory.Event {
		return []inventory.Event{{ID: inventory.NewEventID(p.Ended), Time: p.Ended, Kind: "plan." + string(p.State), Object: p.Object}}
	}
	_, err := w.CreatePlan(t.Context(), inventory.Plan{Kind: "test.three", Object: "x", Requested: time.Now()})
	must(t, err)
	leaders := 0
	find := func() inventory.Plan {
		p, err := s.Plan(t.Context(), "test.three:x")
		must(t, err)
		return p
	}
	for at := 0; ; at++ { // the transaction before or after which this leader dies
		term := lead(t, s, w)
		leaders++
		ctx, kill := context.WithCancel(t.Context())
		calls := 0
		term.Intercept(func(bool) error {
			if ctx.Err() != nil {
				return errKilled
			}
			if calls++; calls > at%3+1 {
				kill()
				return errKilled
			}
			return nil
		})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = (&cluster.Plans{Kinds: kinds, Tell: tell, Log: quiet}).Run(ctx, term)
		}()
		until(t, "the plan ends or its leader dies", func() bool { return find().State.Final() || ctx.Err() != nil })
		kill()
		<-ended
		term.End()
		p := find()
		if p.State.Final() {
			if p.State != inventory.PlanDone || !slices.Equal(p.Done, []string{"a", "b", "c"}) {
				t.Errorf("plan %+v", p)
			}
			break
		}
		if at > 50 {
			t.Fatalf("50 leaders did not end the plan: %+v, steps %v", p, taken)
		}
	}
	t.Logf("%d leaders, steps taken: %v", leaders, taken)
	if leaders < 4 || !slices.IsSorted(taken) {
		t.Errorf("%d leaders took the steps %v: too few died, or out of order", leaders, taken)
	}
	networks, err := s.Networks(t.Context())
	must(t, err)
	events, err := s.Events(t.Context())
	must(t, err)
	if len(networks) != 3 || len(events) != 1 {
		t.Errorf("%d networks and %d events", len(networks), len(events))
	}
}

// A step that waits says for what, one that is hopeless ends the plan with its reason, and plans do not wait for one another.
func TestPlanWaitsAndGivesUp(t *testing.T) {
	s := storetest.Open(t)
	w := writer(t, s, "host-1")
	open := make(chan struct{})
	kinds := map[string][]cluster.Step{
		"test.wait": {{Name: "gate", Do: func(context.Context, *store.Term, inventory.Plan) error {
			select {
			case <-open:
				return nil
			default:
				return cluster.Waiting("%s is not open", "the gate")
			}
		}}},
		"test.hopeless": {{Name: "try", Do: func(context.Context, *store.Term, inventory.Plan) error {
			return cluster.Hopeless(fault.New(fault.Conflict, "the host has come back"))
		}}},
	}
	for kind := range kinds {
		_, err := w.CreatePlan(t.Context(), inventory.Plan{Kind: kind, Object: "x", Requested: time.Now()})
		must(t, err)
	}
	term := lead(t, s, w)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = (&cluster.Plans{Kinds: kinds, Log: quiet}).Run(ctx, term)
	}()
	defer func() { end(); <-ended }()
	is := func(id inventory.PlanID, state inventory.PlanState, note, reason string) func() bool {
		return func() bool {
			p, err := s.Plan(t.Context(), id)
			must(t, err)
			return p.State == state && p.Note == note && p.Reason == reason
		}
	}
	until(t, "the first waits", is("test.wait:x", inventory.PlanOpen, "the gate is not open", ""))
	until(t, "the second fails", is("test.hopeless:x", inventory.PlanFailed, "", "the host has come back"))
	close(open)
	until(t, "the first ends", is("test.wait:x", inventory.PlanDone, "", ""))
}
