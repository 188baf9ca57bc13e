package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// AddDisk gives a VM a disk.
func (s *vms) AddDisk(ctx context.Context, req *connect.Request[godwitv1.AddDiskRequest]) (*connect.Response[godwitv1.AddDiskResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.AddDisk(ctx, connect.NewRequest(req.Msg))
	}
	d := req.Msg.GetDisk()
	vm, err = s.agent.AddDisk(ctx, vm.ID, agent.CreateDisk{
		Datastore: d.GetDatastore(), Path: d.GetPath(), Size: inventory.Bytes(d.GetSize()), Format: inventory.DiskFormat(d.GetFormat()),
	})
	return connect.NewResponse(&godwitv1.AddDiskResponse{Vm: wire.VM(vm)}), err
}

// RemoveDisk takes a disk from a VM.
func (s *vms) RemoveDisk(ctx context.Context, req *connect.Request[godwitv1.RemoveDiskRequest]) (*connect.Response[godwitv1.RemoveDiskResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.RemoveDisk(ctx, connect.NewRequest(req.Msg))
	}
	vm, err = s.agent.RemoveDisk(ctx, vm.ID, req.Msg.GetDisk(), req.Msg.GetDelete())
	return connect.NewResponse(&godwitv1.RemoveDiskResponse{Vm: wire.VM(vm)}), err
}

// GrowDisk makes a disk larger.
func (s *vms) GrowDisk(ctx context.Context, req *connect.Request[godwitv1.GrowDiskRequest]) (*connect.Response[godwitv1.GrowDiskResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.GrowDisk(ctx, connect.NewRequest(req.Msg))
	}
	vm, err = s.agent.GrowDisk(ctx, vm.ID, req.Msg.GetDisk(), inventory.Bytes(req.Msg.GetSize()))
	return connect.NewResponse(&godwitv1.GrowDiskResponse{Vm: wire.VM(vm)}), err
}

// AddNIC gives a VM a network card.
func (s *vms) AddNIC(ctx context.Context, req *connect.Request[godwitv1.AddNICRequest]) (*connect.Response[godwitv1.AddNICResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.AddNIC(ctx, connect.NewRequest(req.Msg))
	}
	n := req.Msg.GetNic()
	vm, err = s.agent.AddNIC(ctx, vm.ID, inventory.NIC{Network: inventory.NetworkID(n.GetNetwork()), MAC: n.GetMac()})
	return connect.NewResponse(&godwitv1.AddNICResponse{Vm: wire.VM(vm)}), err
}

// RemoveNIC takes a network card from a VM.
func (s *vms) RemoveNIC(ctx context.Context, req *connect.Request[godwitv1.RemoveNICRequest]) (*connect.Response[godwitv1.RemoveNICResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.RemoveNIC(ctx, connect.NewRequest(req.Msg))
	}
	vm, err = s.agent.RemoveNIC(ctx, vm.ID, req.Msg.GetNic())
	return connect.NewResponse(&godwitv1.RemoveNICResponse{Vm: wire.VM(vm)}), err
}

// SetVM changes what a stopped VM is made of.
func (s *vms) SetVM(ctx context.Context, req *connect.Request[godwitv1.SetVMRequest]) (*connect.Response[godwitv1.SetVMResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.SetVM(ctx, connect.NewRequest(req.Msg))
	}
	vm, err = s.agent.Set(ctx, vm.ID, agent.SetVM{
		CPUs: int(req.Msg.GetCpus()), Memory: inventory.Bytes(req.Msg.GetMemory()), Display: req.Msg.Display,
	})
	return connect.NewResponse(&godwitv1.SetVMResponse{Vm: wire.VM(vm)}), err
}
