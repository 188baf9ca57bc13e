package wire

import (
	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// MemberPlan returns the message of a plan for a member of the store, without its host, which is the key.
func MemberPlan(p inventory.MemberPlan) *godwitv1.MemberPlan {
	return &godwitv1.MemberPlan{Id: p.ID, State: string(p.State), Peer: p.Peer, Join: p.Join, Why: p.Why, Since: stamp(p.Since)}
}

// FromMemberPlan returns the plan of the message.
func FromMemberPlan(m *godwitv1.MemberPlan) inventory.MemberPlan {
	return inventory.MemberPlan{
		ID: m.GetId(), State: inventory.MemberState(m.GetState()), Peer: m.GetPeer(), Join: m.GetJoin(), Why: m.GetWhy(), Since: fromStamp(m.GetSince()),
	}
}

// Removal returns the message of a host's removal, without the host, which is the key.
func Removal(r inventory.Removal) *godwitv1.Removal {
	return &godwitv1.Removal{Force: r.Force, By: r.By, Since: stamp(r.Since), Waits: r.Waits}
}

// FromRemoval returns the removal of the message.
func FromRemoval(m *godwitv1.Removal) inventory.Removal {
	return inventory.Removal{Force: m.GetForce(), By: m.GetBy(), Since: fromStamp(m.GetSince()), Waits: m.GetWaits()}
}
