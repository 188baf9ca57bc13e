package wire

import (
	"maps"
	"slices"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Plan returns the message of a plan.
func Plan(p inventory.Plan) *godwitv1.Plan {
	return &godwitv1.Plan{
		Id: string(p.ID), Kind: p.Kind, Object: p.Object, Arguments: maps.Clone(p.Arguments), By: p.By, Requested: stamp(p.Requested),
		Done: slices.Clone(p.Done), Note: p.Note, State: string(p.State), Reason: p.Reason, Ended: stamp(p.Ended),
	}
}

// FromPlan returns the plan of the message.
func FromPlan(m *godwitv1.Plan) inventory.Plan {
	return inventory.Plan{
		ID: inventory.PlanID(m.GetId()), Kind: m.GetKind(), Object: m.GetObject(), Arguments: maps.Clone(m.GetArguments()), By: m.GetBy(),
		Requested: fromStamp(m.GetRequested()), Done: slices.Clone(m.GetDone()), Note: m.GetNote(), State: inventory.PlanState(m.GetState()),
		Reason: m.GetReason(), Ended: fromStamp(m.GetEnded()),
	}
}
