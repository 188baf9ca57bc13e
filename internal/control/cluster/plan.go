package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Step is one step of a kind of plan. Do may be called again after it has done its work, by this leader or by the next one: it looks at
// what is, and does what is missing. What it changes it changes through the term, or by calls that carry the term's number, so that a
// leader that was replaced changes nothing. It returns nil when the step is done, Waiting for what has to happen first, and Hopeless when
// the plan cannot be fulfilled any more; every other error is tried again.
type Step struct {
	Name string
	Do   func(ctx context.Context, term *store.Term, p inventory.Plan) error
}

// Waiting says that a step is not done yet, and for what it waits; it is tried again soon.
func Waiting(format string, args ...any) error {
	return &planError{text: fmt.Sprintf(format, args...)}
}

// Hopeless ends a plan as failed, for the reason that err says.
func Hopeless(err error) error {
	return &planError{text: err.Error(), hopeless: true}
}

type planError struct {
	text     string
	hopeless bool
}

func (e *planError) Error() string { return e.text }

// Plans is the loop that fulfils plans: of each that is open it takes the steps that are not done, in order, all plans at once. A step is
// written down as done after it was done, so the leader that follows may take it again.
type Plans struct {
	Kinds map[string][]Step
	// Tell makes the event that tells of the end of a plan; nil tells nothing.
	Tell func(inventory.Plan) []inventory.Event
	Log  *slog.Logger
}

// The pauses of plans.
const (
	planEvery  = 200 * time.Millisecond // between two looks at the store for new plans
	againEvery = 200 * time.Millisecond // between two tries of a step
	forgetRare = 10 * time.Minute       // between two looks for plans that are old
)

// Name implements Loop.
func (p *Plans) Name() string { return "plans" }

// Run implements Loop.
func (p *Plans) Run(ctx context.Context, term *store.Term) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	var mu sync.Mutex
	at := map[inventory.PlanID]bool{} // those that are being worked on
	var forgot time.Time
	for ctx.Err() == nil {
		plans, err := term.Store().Plans(ctx)
		if err != nil {
			return err
		}
		for _, plan := range plans {
			mu.Lock()
			busy := at[plan.ID] || plan.State.Final()
			at[plan.ID] = at[plan.ID] || !busy
			mu.Unlock()
			if busy {
				continue
			}
			all.Go(func() {
				p.fulfil(ctx, term, plan)
				mu.Lock()
				defer mu.Unlock()
				delete(at, plan.ID)
			})
		}
		if time.Since(forgot) > forgetRare {
			if err := term.ForgetPlans(ctx, time.Now()); err != nil {
				return err
			}
			forgot = time.Now()
		}
		rest(ctx, planEvery)
	}
	return nil
}

// fulfil takes the steps of one plan until it is over, or ctx is.
func (p *Plans) fulfil(ctx context.Context, term *store.Term, plan inventory.Plan) {
	log := p.Log.With(slog.String("plan", string(plan.ID)))
	steps, known := p.Kinds[plan.Kind]
	if !known {
		// A newer Godwit's: a leader of that version takes it up.
		log.LogAttrs(ctx, slog.LevelWarn, "plan of a kind that this version does not know")
		rest(ctx, forgetRare)
		return
	}
	for _, step := range steps {
		for !plan.DidStep(step.Name) {
			err := step.Do(ctx, term, plan)
			if over(err) || ctx.Err() != nil {
				return
			}
			var known *planError
			if err != nil && !errors.As(err, &known) {
				log.LogAttrs(ctx, slog.LevelWarn, "step is tried again", slog.String("step", step.Name), slog.Any("err", err))
			}
			next, err := p.write(ctx, term, plan, step, err)
			switch {
			case over(err), fault.Is(err, fault.Conflict), fault.Is(err, fault.NotFound):
				return // somebody else's now, or over
			case err != nil:
				log.LogAttrs(ctx, slog.LevelWarn, "plan not written", slog.Any("err", err))
			default:
				plan = next
			}
			if plan.State.Final() {
				return
			}
			if !plan.DidStep(step.Name) {
				rest(ctx, againEvery)
			}
		}
	}
	if _, err := p.end(ctx, term, plan, inventory.PlanDone, ""); err != nil && !over(err) {
		log.LogAttrs(ctx, slog.LevelWarn, "plan not ended yet", slog.Any("err", err))
	}
}

// write notes what came of a step.
func (p *Plans) write(ctx context.Context, term *store.Term, plan inventory.Plan, step Step, err error) (inventory.Plan, error) {
	var said *planError
	if errors.As(err, &said) && said.hopeless {
		return p.end(ctx, term, plan, inventory.PlanFailed, said.text)
	}
	return term.UpdatePlan(ctx, plan.ID, func(p *inventory.Plan) error {
		switch {
		case !p.Requested.Equal(plan.Requested):
			return fault.New(fault.Conflict, "plan %s ended, and was asked for again", plan.ID)
		case err != nil:
			p.Note = err.Error()
		case !p.DidStep(step.Name):
			p.Done, p.Note = append(p.Done, step.Name), ""
		}
		return nil
	})
}

func (p *Plans) end(ctx context.Context, term *store.Term, plan inventory.Plan, state inventory.PlanState, why string) (inventory.Plan, error) {
	plan.State, plan.Reason, plan.Ended = state, why, time.Now()
	var events []inventory.Event
	if p.Tell != nil {
		events = p.Tell(plan)
	}
	return term.UpdatePlan(ctx, plan.ID, func(now *inventory.Plan) error {
		if !now.Requested.Equal(plan.Requested) {
			return fault.New(fault.Conflict, "plan %s ended, and was asked for again", plan.ID)
		}
		now.State, now.Reason, now.Ended, now.Note = plan.State, plan.Reason, plan.Ended, ""
		return nil
	}, events...)
}

// over reports whether the leader's time is: nothing that it tries succeeds any more.
func over(err error) bool {
	return errors.Is(err, store.ErrTermOver) || errors.Is(err, store.ErrEpochOver)
}
