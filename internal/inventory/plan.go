package inventory

import (
	"slices"
	"time"
)

// PlanID names a plan by its kind and its object, so that there is one plan of a kind about an object at a time.
type PlanID string

// NewPlanID returns the id of the plan of that kind about that object.
func NewPlanID(kind, object string) PlanID { return PlanID(kind + ":" + object) }

// Plan is a job of the leader that takes several steps and must end once, whoever leads meanwhile. It is in the store before its first step is
// taken; a leader that follows another one goes on with the first step that is not in Done, which may have been taken all the same.
//
// Whoever asks for it writes it once; afterwards only the leader does.
type Plan struct {
	ID        PlanID
	Kind      string            // noun.verb: host.confirm-dead
	Object    string            // what it is about
	Arguments map[string]string // what its kind needs to know
	By        string            // who asked
	Requested time.Time
	Done      []string // names of the steps that are done, in order
	Note      string   // what the next one waits for, or what came of the last one
	State     PlanState
	Reason    string // why it failed
	Ended     time.Time
}

// DidStep reports whether the step of that name is done.
func (p Plan) DidStep(name string) bool { return slices.Contains(p.Done, name) }

// PlanState is where a plan stands.
type PlanState string

// The states; all but PlanOpen are final.
const (
	PlanOpen   PlanState = "open"
	PlanDone   PlanState = "done"
	PlanFailed PlanState = "failed"
)

// Final reports whether nothing will happen any more.
func (s PlanState) Final() bool { return s != PlanOpen }
