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

// AddDisk gives a VM a disk.
func (s *vms) AddDisk(ctx context.Context, req *connect.Request[godwitv1.AddDiskRequest]) (*connect.Response[godwitv1.AddDiskResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.AddDisk, func(vm inventory.VM) (*godwitv1.AddDiskResponse, error) {
		d := req.Msg.GetDisk()
		vm, err := s.agent.AddDisk(ctx, vm.ID, agent.CreateDisk{
			Datastore: d.GetDatastore(), Path: d.GetPath(), Size: inventory.Bytes(d.GetSize()), Format: inventory.DiskFormat(d.GetFormat()),
		})
		return &godwitv1.AddDiskResponse{Vm: wire.VM(vm)}, err
	})
}

// RemoveDisk takes a disk from a VM.
func (s *vms) RemoveDisk(ctx context.Context, req *connect.Request[godwitv1.RemoveDiskRequest]) (*connect.Response[godwitv1.RemoveDiskResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.RemoveDisk, func(vm inventory.VM) (*godwitv1.RemoveDiskResponse, error) {
		vm, err := s.agent.RemoveDisk(ctx, vm.ID, req.Msg.GetDisk(), req.Msg.GetDelete())
		return &godwitv1.RemoveDiskResponse{Vm: wire.VM(vm)}, err
	})
}

// GrowDisk makes a disk larger.
func (s *vms) GrowDisk(ctx context.Context, req *connect.Request[godwitv1.GrowDiskRequest]) (*connect.Response[godwitv1.GrowDiskResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.GrowDisk, func(vm inventory.VM) (*godwitv1.GrowDiskResponse, error) {
		vm, err := s.agent.GrowDisk(ctx, vm.ID, req.Msg.GetDisk(), inventory.Bytes(req.Msg.GetSize()))
		return &godwitv1.GrowDiskResponse{Vm: wire.VM(vm)}, err
	})
}

// AddNIC gives a VM a network card.
func (s *vms) AddNIC(ctx context.Context, req *connect.Request[godwitv1.AddNICRequest]) (*connect.Response[godwitv1.AddNICResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.AddNIC, func(vm inventory.VM) (*godwitv1.AddNICResponse, error) {
		n := req.Msg.GetNic()
		vm, err := s.agent.AddNIC(ctx, vm.ID, inventory.NIC{Network: inventory.NetworkID(n.GetNetwork()), MAC: n.GetMac()})
		return &godwitv1.AddNICResponse{Vm: wire.VM(vm)}, err
	})
}

// RemoveNIC takes a network card from a VM.
func (s *vms) RemoveNIC(ctx context.Context, req *connect.Request[godwitv1.RemoveNICRequest]) (*connect.Response[godwitv1.RemoveNICResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.RemoveNIC, func(vm inventory.VM) (*godwitv1.RemoveNICResponse, error) {
		vm, err := s.agent.RemoveNIC(ctx, vm.ID, req.Msg.GetNic())
		return &godwitv1.RemoveNICResponse{Vm: wire.VM(vm)}, err
	})
}

// SetVM changes what a stopped VM is made of.
func (s *vms) SetVM(ctx context.Context, req *connect.Request[godwitv1.SetVMRequest]) (*connect.Response[godwitv1.SetVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.SetVM, func(vm inventory.VM) (*godwitv1.SetVMResponse, error) {
		vm, err := s.agent.Set(ctx, vm.ID, agent.SetVM{
			CPUs: int(req.Msg.GetCpus()), Memory: inventory.Bytes(req.Msg.GetMemory()), Display: req.Msg.Display,
		})
		return &godwitv1.SetVMResponse{Vm: wire.VM(vm)}, err
	})
}
