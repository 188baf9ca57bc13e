package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// CloneVM makes a new VM like another one, on the same host.
func (s *vms) CloneVM(ctx context.Context, req *connect.Request[godwitv1.CloneVMRequest]) (*connect.Response[godwitv1.CloneVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.CloneVM, func(vm inventory.VM) (*godwitv1.CloneVMResponse, error) {
		want := agent.CloneVM{
			Name: req.Msg.GetName(), Full: req.Msg.GetFull(), Datastore: req.Msg.GetDatastore(), Seed: wire.FromSeed(req.Msg.GetSeed()),
		}
		vm, err := s.agent.Clone(ctx, vm.ID, want)
		return &godwitv1.CloneVMResponse{Vm: wire.VM(vm)}, err
	})
}

// SetTemplate makes a VM a template, or a VM again.
func (s *vms) SetTemplate(ctx context.Context, req *connect.Request[godwitv1.SetTemplateRequest]) (*connect.Response[godwitv1.SetTemplateResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.SetTemplate, func(vm inventory.VM) (*godwitv1.SetTemplateResponse, error) {
		vm, err := s.agent.SetTemplate(ctx, vm.ID, req.Msg.GetTemplate())
		return &godwitv1.SetTemplateResponse{Vm: wire.VM(vm)}, err
	})
}

// MoveVM moves a VM that is off.
func (s *vms) MoveVM(ctx context.Context, req *connect.Request[godwitv1.MoveVMRequest]) (*connect.Response[godwitv1.MoveVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.MoveVM, func(vm inventory.VM) (*godwitv1.MoveVMResponse, error) {
		vm, err := s.agent.Move(ctx, vm.ID, agent.MoveVM{Host: inventory.HostID(req.Msg.GetHost()), Datastore: req.Msg.GetDatastore()})
		return &godwitv1.MoveVMResponse{Vm: wire.VM(vm)}, err
	})
}

// movings implements MoveService, which the source's agent calls at the target's.
type movings struct{ agent *agent.Agent }

// AdmitMove makes this host ready for a cold migration.
func (s *movings) AdmitMove(ctx context.Context, req *connect.Request[godwitv1.AdmitMoveRequest]) (*connect.Response[godwitv1.AdmitMoveResponse], error) {
	m := req.Msg
	want := agent.AdmitMove{
		Move: m.GetMove(), VM: wire.FromVM(m.GetVm()), Source: inventory.HostID(m.GetSource()), SourceEpoch: m.GetSourceEpoch(), DryRun: m.GetDryRun(),
	}
	for _, f := range m.GetFiles() {
		want.Files = append(want.Files, agent.MoveFile{File: wire.FromFile(f.GetFile()), Size: inventory.Bytes(f.GetSize()), Sum: f.GetSha256()})
	}
	for _, id := range m.GetMarked() {
		want.Marked = append(want.Marked, inventory.DatastoreID(id))
	}
	reasons, present, epoch, err := s.agent.AdmitMove(ctx, want)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.AdmitMoveResponse{Reasons: reasons, TargetEpoch: epoch}
	for _, f := range present {
		resp.Present = append(resp.Present, wire.File(f))
	}
	return connect.NewResponse(resp), nil
}

// EndMove ends a cold migration to this host.
func (s *movings) EndMove(ctx context.Context, req *connect.Request[godwitv1.EndMoveRequest]) (*connect.Response[godwitv1.EndMoveResponse], error) {
	err := s.agent.EndMove(ctx, req.Msg.GetMove(), inventory.VMID(req.Msg.GetVm()), inventory.HostID(req.Msg.GetSource()))
	return connect.NewResponse(&godwitv1.EndMoveResponse{}), err
}
