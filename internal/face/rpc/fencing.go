package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// fencing implements FencingService.
type fencing struct{ agent *agent.Agent }

// ConfirmDead takes an admin's word that a host is off.
func (s *fencing) ConfirmDead(ctx context.Context, req *connect.Request[godwitv1.ConfirmDeadRequest]) (*connect.Response[godwitv1.ConfirmDeadResponse], error) {
	plan, err := s.agent.ConfirmDead(ctx, inventory.HostID(req.Msg.GetHost()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.ConfirmDeadResponse{Plan: wire.Plan(plan)}), nil
}
