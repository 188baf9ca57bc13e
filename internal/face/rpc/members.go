package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// members implements MemberService.
type members struct{ agent *agent.Agent }

// RemoveHost takes a host out of the cluster, and returns when it is out.
func (s *members) RemoveHost(ctx context.Context, req *connect.Request[godwitv1.RemoveHostRequest]) (*connect.Response[godwitv1.RemoveHostResponse], error) {
	err := s.agent.RemoveHost(ctx, inventory.HostID(req.Msg.GetHost()), req.Msg.GetForce())
	return connect.NewResponse(&godwitv1.RemoveHostResponse{}), err
}
