package store

import (
	"context"

	"google.golang.org/protobuf/proto"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// UpdateVM changes what a VM is and who may run it in one transaction: change gets the VM as it is now and may change its Spec
// and its Run; it may be called several times, and its error ends the update and is returned as it is. A VM that has an heir or
// a migration that is not over is refused with fault.Conflict, and so is one of another owner: its devices and its place
// belong to the hand-over, or to that host. The name and the status are not written. A new NIC's MAC address that another VM
// has is ErrMACTaken.
//
// Guards name hosts whose agents must not have been started since: the transaction compares their epochs, and one that
// is over is fault.Conflict. UpdateVM returns what the store holds now. After an error of kind fault.Unavailable or
// fault.Canceled the outcome is not known; a later change of the run record that succeeds says that this one never will.
func (w *Writer) UpdateVM(ctx context.Context, id inventory.VMID, guards map[inventory.HostID]uint64, change func(*inventory.VM) error) (inventory.VM, error) {
	specKey, runKey, migrationKey := keyVM(id, partSpec), keyVM(id, partRun), keyVM(id, partMigration)
	for range attemptsMax {
		spec, specRevision, err := load(ctx, w.s, specKey, vmSpecs)
		if err != nil {
			return inventory.VM{}, err
		}
		run, runRevision, err := load(ctx, w.s, runKey, vmRuns)
		if err != nil {
			return inventory.VM{}, err
		}
		if specRevision == 0 || runRevision == 0 {
			return inventory.VM{}, noVM(string(id))
		}
		if err := w.mayChange(ctx, id, run.value); err != nil {
			return inventory.VM{}, err
		}
		guarded, err := w.guard(ctx, guards)
		if err != nil {
			return inventory.VM{}, err
		}
		// The change gets values of its own: lists in what was read would otherwise be changed under it.
		vm := inventory.VM{ID: id, Spec: vmSpecs.from(vmSpecs.to(spec.value)), Run: run.value}
		if err := change(&vm); err != nil {
			return inventory.VM{}, err
		}
		if vm.Spec.Name != spec.value.Name {
			return inventory.VM{}, fault.New(fault.Internal, "vm %s: a name is not changed by UpdateVM", id)
		}
		var ops []clientv3.Op
		if !proto.Equal(vmSpecs.to(vm.Spec), vmSpecs.to(spec.value)) {
			text, err := vmSpecs.repack(spec, vm.Spec)
			if err != nil {
				return inventory.VM{}, err
			}
			ops = append(ops, clientv3.OpPut(specKey, text))
		}
		if !proto.Equal(vmRuns.to(vm.Run), vmRuns.to(run.value)) {
			text, err := vmRuns.repack(run, vm.Run)
			if err != nil {
				return inventory.VM{}, err
			}
			ops = append(ops, clientv3.OpPut(runKey, text))
		}
		if len(ops) == 0 {
			return vm, nil
		}
		free, take, err := w.changeMACs(ctx, id, spec.value.NICs, vm.Spec.NICs)
		if err != nil {
			return inventory.VM{}, err
		}
		guarded, ops = append(guarded, free...), append(ops, take...)
		cmps := append(guarded, unchanged(specKey, specRevision), unchanged(runKey, runRevision), absent(migrationKey))
		grown := proto.Size(vmSpecs.to(vm.Spec)) > proto.Size(vmSpecs.to(spec.value)) // a disk or a NIC more; one less makes room
		done, err := w.transact(ctx, grown, cmps, ops)
		if err != nil {
			return inventory.VM{}, err
		}
		if done {
			return vm, nil
		}
		if err := w.macTaken(ctx, id, without(vm.Spec.NICs, spec.value.NICs)); err != nil {
			return inventory.VM{}, err
		}
	}
	return inventory.VM{}, fault.New(fault.Conflict, "vm %s was changed by others %d times meanwhile: try again", id, attemptsMax)
}

// mayChange refuses a VM that is on its way, or another host's.
func (w *Writer) mayChange(ctx context.Context, id inventory.VMID, run inventory.VMRun) error {
	active, err := w.s.ActiveMigration(ctx, id)
	switch {
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	case active != "" || !run.Heir.IsZero():
		return fault.New(fault.Conflict, "it is migrating: wait for that, or cancel it with godwit migration cancel")
	case run.Owner != w.host:
		return fault.New(fault.Conflict, "it moved to %s meanwhile: try again", run.Owner)
	}
	return nil
}

// guard returns comparisons that hold while the hosts' epochs are the given ones.
func (w *Writer) guard(ctx context.Context, epochs map[inventory.HostID]uint64) ([]clientv3.Cmp, error) {
	var cmps []clientv3.Cmp
	for host, epoch := range epochs {
		key := keyHost(host, partEpoch)
		now, revision, err := load(ctx, w.s, key, hostEpochs)
		if err != nil {
			return nil, err
		}
		if revision == 0 || now.value.Epoch != epoch {
			return nil, fault.New(fault.Conflict, "the agent of host %s was started again meanwhile: try again", host)
		}
		cmps = append(cmps, unchanged(key, revision))
	}
	return cmps, nil
}
