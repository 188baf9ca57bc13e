package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// hosts implements HostService.
type hosts struct{ agent *agent.Agent }

// ListHosts lists all hosts and says which answer this one.
func (s *hosts) ListHosts(ctx context.Context, _ *connect.Request[godwitv1.ListHostsRequest]) (*connect.Response[godwitv1.ListHostsResponse], error) {
	all, err := s.agent.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListHostsResponse{}
	for _, h := range all {
		m := wire.Host(h.Host)
		m.Status.Connected = h.Answers
		m.Store = h.Store
		resp.Hosts = append(resp.Hosts, m)
	}
	return connect.NewResponse(resp), nil
}

// GetHost answers for this host, or asks the one that is named.
func (s *hosts) GetHost(ctx context.Context, req *connect.Request[godwitv1.GetHostRequest]) (*connect.Response[godwitv1.GetHostResponse], error) {
	if remote, err := s.elsewhere(ctx, req.Header().Get, req.Msg.GetHost()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		resp, err := remote.GetHost(ctx, connect.NewRequest(req.Msg))
		if !fault.Is(err, fault.Unavailable) {
			return resp, err
		}
		// It does not answer: what the cluster knows of it, and why, is better than that.
		h, known := s.agent.Store.Host(ctx, inventory.HostID(req.Msg.GetHost()))
		if known != nil {
			return nil, err
		}
		return connect.NewResponse(&godwitv1.GetHostResponse{Host: wire.Host(h)}), nil
	}
	self, processes, err := s.agent.Self(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.GetHostResponse{Host: wire.Host(self)}
	resp.Host.Status.Connected = true
	for _, p := range processes {
		resp.Processes = append(resp.Processes, &godwitv1.Process{Role: p.Role, Pid: int32(p.PID), Resident: int64(p.Resident)}) //nolint:gosec // pids fit
	}
	return connect.NewResponse(resp), nil
}

// Doctor examines this host, or asks the one that is named to.
func (s *hosts) Doctor(ctx context.Context, req *connect.Request[godwitv1.DoctorRequest]) (*connect.Response[godwitv1.DoctorResponse], error) {
	if remote, err := s.elsewhere(ctx, req.Header().Get, req.Msg.GetHost()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return remote.Doctor(ctx, connect.NewRequest(req.Msg))
	}
	resp := &godwitv1.DoctorResponse{}
	for _, c := range s.agent.Doctor(ctx) {
		resp.Checks = append(resp.Checks, &godwitv1.Check{Name: c.Name, State: c.State, Detail: c.Detail, Fix: c.Fix})
	}
	return connect.NewResponse(resp), nil
}

// elsewhere returns the API of the named host when that is another one.
func (s *hosts) elsewhere(ctx context.Context, header func(string) string, name string) (godwitv1connect.HostServiceClient, error) {
	host := inventory.HostID(name)
	if host == "" || host == s.agent.Host() || header(forwarded) != "" {
		return nil, nil
	}
	client, base, err := s.agent.Reach(ctx, host)
	if err != nil {
		return nil, err
	}
	return godwitv1connect.NewHostServiceClient(client, base, markForwarded(s.agent)), nil
}

// CreateToken makes a one-time token.
func (s *hosts) CreateToken(ctx context.Context, req *connect.Request[godwitv1.CreateTokenRequest]) (*connect.Response[godwitv1.CreateTokenResponse], error) {
	token, err := s.agent.CreateToken(ctx, req.Msg.GetLifetime().AsDuration())
	return connect.NewResponse(&godwitv1.CreateTokenResponse{Token: token}), err
}

// CreateNetwork makes a segment.
func (s *hosts) CreateNetwork(ctx context.Context, req *connect.Request[godwitv1.CreateNetworkRequest]) (*connect.Response[godwitv1.CreateNetworkResponse], error) {
	n := inventory.Network{ID: inventory.NetworkID(req.Msg.GetId()), Spec: wire.FromNetworkSpec(req.Msg.GetSpec())}
	n, err := s.agent.CreateNetwork(ctx, n)
	return connect.NewResponse(&godwitv1.CreateNetworkResponse{Network: wire.Network(n)}), err
}

// ListNetworks lists the segments.
func (s *hosts) ListNetworks(ctx context.Context, _ *connect.Request[godwitv1.ListNetworksRequest]) (*connect.Response[godwitv1.ListNetworksResponse], error) {
	all, err := s.agent.Networks(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListNetworksResponse{}
	for _, n := range all {
		resp.Networks = append(resp.Networks, wire.Network(n))
	}
	return connect.NewResponse(resp), nil
}
