package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// joins implements JoinService and LeaveService, for callers without a certificate: the token says what they may.
type joins struct{ agent *agent.Agent }

// Join takes a host into the cluster in exchange for a one-time token.
func (s *joins) Join(ctx context.Context, req *connect.Request[godwitv1.JoinRequest]) (*connect.Response[godwitv1.JoinResponse], error) {
	m := req.Msg
	if err := clocksAgree(m.GetHost(), m.GetNow(), time.Now()); err != nil {
		return nil, err
	}
	welcome, err := s.agent.Join(ctx, m.GetToken(), inventory.HostID(m.GetHost()), m.GetCsr(), m.GetAddresses(), m.GetWitness())
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.JoinResponse{
		Cluster: welcome.Cluster, Ca: welcome.CA, Certificate: welcome.Certificate, StoreEndpoints: welcome.StoreEndpoints,
		Secret: welcome.Secret, Revocations: welcome.Revoked,
	}
	if x := welcome.StoreAccess; x != nil {
		resp.StoreAccess = &godwitv1.StoreAccess{Ca: x.CA, Certificate: x.Certificate, Key: x.Key}
	}
	return connect.NewResponse(resp), nil
}

// Leave undoes a join that could not be finished.
func (s *joins) Leave(ctx context.Context, req *connect.Request[godwitv1.LeaveRequest]) (*connect.Response[godwitv1.LeaveResponse], error) {
	err := s.agent.Leave(ctx, req.Msg.GetToken(), inventory.HostID(req.Msg.GetHost()), req.Msg.GetCsr())
	return connect.NewResponse(&godwitv1.LeaveResponse{}), err
}
