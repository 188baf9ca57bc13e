package rpc

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// vms implements VMService.
type vms struct{ agent *agent.Agent }

// CreateVM makes the VM on the host that was named, or on the one that is asked.
func (s *vms) CreateVM(ctx context.Context, req *connect.Request[godwitv1.CreateVMRequest]) (*connect.Response[godwitv1.CreateVMResponse], error) {
	m := req.Msg
	if host := inventory.HostID(m.GetHost()); host != "" && host != s.agent.Host() {
		base, client, err := away(ctx, s.agent, req.Header(), host)
		if err != nil {
			return nil, err
		}
		return godwitv1connect.NewVMServiceClient(client, base, markForwarded(s.agent)).CreateVM(ctx, connect.NewRequest(m))
	}
	want := agent.CreateVM{
		Name: m.GetName(), CPUs: int(m.GetCpus()), Memory: inventory.Bytes(m.GetMemory()), CPUModel: m.GetCpuModel(),
		Boot: wire.FromBoot(m.GetBoot()), Display: m.GetDisplay(),
		Full: m.GetFull(), Size: inventory.Bytes(m.GetSize()), Seed: wire.FromSeed(m.GetSeed()), Datastore: m.GetDatastore(), Start: m.GetStart(),
	}
	want.Boot.UEFI = want.Boot.UEFI || m.GetUefi()
	path, datastore, _ := strings.Cut(m.GetImage(), "@")
	want.Image = inventory.File{Datastore: inventory.DatastoreID(datastore), Path: path}
	for _, d := range m.GetDisks() {
		want.Disks = append(want.Disks, agent.CreateDisk{
			Datastore: d.GetDatastore(), Path: d.GetPath(), Size: inventory.Bytes(d.GetSize()), Format: inventory.DiskFormat(d.GetFormat()),
		})
	}
	for _, n := range m.GetNics() {
		want.NICs = append(want.NICs, inventory.NIC{Network: inventory.NetworkID(n.GetNetwork()), MAC: n.GetMac()})
	}
	vm, err := s.agent.Create(ctx, want)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CreateVMResponse{Vm: wire.VM(vm)}), nil
}

// ListVMs answers from the store.
func (s *vms) ListVMs(ctx context.Context, _ *connect.Request[godwitv1.ListVMsRequest]) (*connect.Response[godwitv1.ListVMsResponse], error) {
	all, err := s.agent.VMs(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListVMsResponse{}
	for _, vm := range all {
		resp.Vms = append(resp.Vms, wire.VM(vm))
	}
	return connect.NewResponse(resp), nil
}

// GetVM answers with live figures from the owner; when that does not answer, with what the store remembers.
func (s *vms) GetVM(ctx context.Context, req *connect.Request[godwitv1.GetVMRequest]) (*connect.Response[godwitv1.GetVMResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		resp, err := remote.GetVM(ctx, connect.NewRequest(req.Msg))
		if err == nil {
			return resp, nil
		}
		vm.Status.State = inventory.Unknown
		vm.Status.Detail = err.Error()
	}
	return connect.NewResponse(&godwitv1.GetVMResponse{Vm: wire.VM(vm)}), nil
}

// StartVM starts a stopped VM.
func (s *vms) StartVM(ctx context.Context, req *connect.Request[godwitv1.StartVMRequest]) (*connect.Response[godwitv1.StartVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.StartVM, func(vm inventory.VM) (*godwitv1.StartVMResponse, error) {
		vm, err := s.agent.Start(ctx, vm.ID)
		return &godwitv1.StartVMResponse{Vm: wire.VM(vm)}, err
	})
}

// StopVM shuts a VM down.
func (s *vms) StopVM(ctx context.Context, req *connect.Request[godwitv1.StopVMRequest]) (*connect.Response[godwitv1.StopVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.StopVM, func(vm inventory.VM) (*godwitv1.StopVMResponse, error) {
		vm, err := s.agent.Stop(ctx, vm.ID, req.Msg.GetForce(), req.Msg.GetGrace().AsDuration())
		return &godwitv1.StopVMResponse{Vm: wire.VM(vm)}, err
	})
}

// ResetVM resets a running VM.
func (s *vms) ResetVM(ctx context.Context, req *connect.Request[godwitv1.ResetVMRequest]) (*connect.Response[godwitv1.ResetVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.ResetVM, func(vm inventory.VM) (*godwitv1.ResetVMResponse, error) {
		vm, err := s.agent.Reset(ctx, vm.ID)
		return &godwitv1.ResetVMResponse{Vm: wire.VM(vm)}, err
	})
}

// PauseVM stops a VM's vCPUs.
func (s *vms) PauseVM(ctx context.Context, req *connect.Request[godwitv1.PauseVMRequest]) (*connect.Response[godwitv1.PauseVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.PauseVM, func(vm inventory.VM) (*godwitv1.PauseVMResponse, error) {
		vm, err := s.agent.Pause(ctx, vm.ID)
		return &godwitv1.PauseVMResponse{Vm: wire.VM(vm)}, err
	})
}

// ResumeVM lets a paused VM run on.
func (s *vms) ResumeVM(ctx context.Context, req *connect.Request[godwitv1.ResumeVMRequest]) (*connect.Response[godwitv1.ResumeVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.ResumeVM, func(vm inventory.VM) (*godwitv1.ResumeVMResponse, error) {
		vm, err := s.agent.Resume(ctx, vm.ID)
		return &godwitv1.ResumeVMResponse{Vm: wire.VM(vm)}, err
	})
}

// DestroyVM removes a stopped VM.
func (s *vms) DestroyVM(ctx context.Context, req *connect.Request[godwitv1.DestroyVMRequest]) (*connect.Response[godwitv1.DestroyVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.DestroyVM, func(vm inventory.VM) (*godwitv1.DestroyVMResponse, error) {
		err := s.agent.Destroy(ctx, vm.ID, req.Msg.GetDeleteDisks())
		return &godwitv1.DestroyVMResponse{}, err
	})
}

// MigrateVM records a migration at the VM's host, which then drives it.
func (s *vms) MigrateVM(ctx context.Context, req *connect.Request[godwitv1.MigrateVMRequest]) (*connect.Response[godwitv1.MigrateVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.MigrateVM, func(vm inventory.VM) (*godwitv1.MigrateVMResponse, error) {
		m, err := s.agent.Migrate(ctx, agent.MigrateVM{
			VM: vm.ID, Target: inventory.HostID(req.Msg.GetTarget()), DryRun: req.Msg.GetDryRun(),
			Bandwidth: inventory.BytesPerSecond(req.Msg.GetBandwidth()), DowntimeMax: req.Msg.GetDowntimeMax().AsDuration(),
		})
		resp := &godwitv1.MigrateVMResponse{}
		if m.ID != "" {
			resp.Migration = wire.Migration(m)
		}
		return resp, err
	})
}
