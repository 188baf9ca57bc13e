package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// migrations implements MigrationService.
type migrations struct{ agent *agent.Agent }

// ListMigrations answers from the store, newest first.
func (s *migrations) ListMigrations(ctx context.Context, _ *connect.Request[godwitv1.ListMigrationsRequest]) (*connect.Response[godwitv1.ListMigrationsResponse], error) {
	all, err := s.agent.Migrations(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListMigrationsResponse{}
	for _, m := range all {
		resp.Migrations = append(resp.Migrations, wire.Migration(m))
	}
	return connect.NewResponse(resp), nil
}

// GetMigration answers from the source's memory while it runs, else from the store.
func (s *migrations) GetMigration(ctx context.Context, req *connect.Request[godwitv1.GetMigrationRequest]) (*connect.Response[godwitv1.GetMigrationResponse], error) {
	m, remote, err := s.route(ctx, req.Header().Get, req.Msg.GetMigration())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		if resp, err := remote.GetMigration(ctx, connect.NewRequest(req.Msg)); err == nil {
			return resp, nil
		}
	}
	return connect.NewResponse(&godwitv1.GetMigrationResponse{Migration: wire.Migration(m)}), nil
}

// WatchMigration streams the migration until its phase is final.
func (s *migrations) WatchMigration(ctx context.Context, req *connect.Request[godwitv1.WatchMigrationRequest], out *connect.ServerStream[godwitv1.WatchMigrationResponse]) error {
	m, remote, err := s.route(ctx, req.Header().Get, req.Msg.GetMigration())
	if err != nil {
		return err
	}
	if remote != nil {
		far, err := remote.WatchMigration(ctx, connect.NewRequest(req.Msg))
		if err != nil {
			return err
		}
		defer func() { _ = far.Close() }() // read to its end or given up
		for far.Receive() {
			if err := out.Send(far.Msg()); err != nil {
				return err
			}
		}
		return far.Err()
	}
	return s.agent.WatchMigration(ctx, m.ID, func(m inventory.Migration) error {
		return out.Send(&godwitv1.WatchMigrationResponse{Migration: wire.Migration(m)})
	})
}

// CancelMigration marks the record; the source's agent acts on it.
func (s *migrations) CancelMigration(ctx context.Context, req *connect.Request[godwitv1.CancelMigrationRequest]) (*connect.Response[godwitv1.CancelMigrationResponse], error) {
	m, err := s.agent.CancelMigration(ctx, inventory.MigrationID(req.Msg.GetMigration()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CancelMigrationResponse{Migration: wire.Migration(m)}), nil
}

// route finds the migration and, while another host drives it, that host's API.
func (s *migrations) route(ctx context.Context, header func(string) string, id string) (inventory.Migration, godwitv1connect.MigrationServiceClient, error) {
	m, err := s.agent.Migration(ctx, inventory.MigrationID(id))
	if err != nil {
		return m, nil, err
	}
	if m.Status.Phase.Final() || m.Spec.Source == s.agent.Host() || header(forwarded) != "" {
		return m, nil, nil
	}
	client, base, err := s.agent.Reach(ctx, m.Spec.Source)
	if err != nil {
		return m, nil, err
	}
	return m, godwitv1connect.NewMigrationServiceClient(client, base, markForwarded(s.agent)), nil
}

// handovers implements HandoverService, which only the source's agent of a migration calls.
type handovers struct{ agent *agent.Agent }

// Prepare makes this host ready to receive a VM, or lists what stands against it.
func (s *handovers) Prepare(ctx context.Context, req *connect.Request[godwitv1.PrepareRequest]) (*connect.Response[godwitv1.PrepareResponse], error) {
	m := req.Msg
	ready, err := s.agent.Prepare(ctx, migrate.PrepareRequest{
		Migration: inventory.MigrationID(m.GetMigration()), VM: wire.FromVM(m.GetVm()), Source: inventory.HostID(m.GetSource()),
		SourceEpoch: m.GetSourceEpoch(), DryRun: m.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.PrepareResponse{Reasons: ready.Reasons, TargetEpoch: ready.Epoch, BootId: ready.Boot}), nil
}

// Release gives the VM to this host.
func (s *handovers) Release(ctx context.Context, req *connect.Request[godwitv1.ReleaseRequest]) (*connect.Response[godwitv1.ReleaseResponse], error) {
	m := req.Msg
	answer, err := s.agent.Release(ctx, inventory.MigrationID(m.GetMigration()), inventory.HostID(m.GetSource()), m.GetSourceEpoch())
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ReleaseResponse{Answer: godwitv1.ReleaseResponse_ANSWER_RETURNED, Reason: answer.Reason}
	switch {
	case answer.Running:
		resp.Answer = godwitv1.ReleaseResponse_ANSWER_RUNNING
		if !answer.Resumed.IsZero() {
			resp.ResumedUnixNanos = answer.Resumed.UnixNano()
		}
	case answer.Lost:
		resp.Answer = godwitv1.ReleaseResponse_ANSWER_LOST
	}
	return connect.NewResponse(resp), nil
}

// Discard drops this host's side of a migration for good; the source asks, or the leader in its place.
func (s *handovers) Discard(ctx context.Context, req *connect.Request[godwitv1.DiscardRequest]) (*connect.Response[godwitv1.DiscardResponse], error) {
	m := req.Msg
	if err := s.agent.HeardTerm(m.GetTerm()); err != nil {
		return nil, err
	}
	answer, err := s.agent.Discard(ctx, inventory.MigrationID(m.GetMigration()), inventory.HostID(m.GetSource()), m.GetSourceEpoch())
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.DiscardResponse{}
	switch answer { //nolint:exhaustive // the agent gives these three
	case migrate.AnswerDiscarded:
		resp.Answer = godwitv1.DiscardResponse_ANSWER_DISCARDED
	case migrate.AnswerRunning:
		resp.Answer = godwitv1.DiscardResponse_ANSWER_RUNNING
	case migrate.AnswerLost:
		resp.Answer = godwitv1.DiscardResponse_ANSWER_LOST
	}
	return connect.NewResponse(resp), nil
}
