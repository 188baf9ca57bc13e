package store

import (
	"context"
	"errors"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// ErrMACTaken is in the chain of an error that says that a MAC address belongs to another VM of the cluster. Its kind is fault.Exists.
var ErrMACTaken = errors.New("the MAC address is taken")

// takeMACs returns what a transaction compares and writes so that the VM's MAC addresses are its own.
func takeMACs(vm inventory.VM) (free []clientv3.Cmp, take []clientv3.Op, err error) {
	value, err := macs.pack(vm.ID)
	for _, n := range vm.Spec.NICs {
		free = append(free, absent(keyMAC(n.MAC)))
		take = append(take, clientv3.OpPut(keyMAC(n.MAC), value))
	}
	return free, take, err
}

// freeMACs returns what a transaction deletes when the VM goes: the addresses that are still its own.
func (w *Writer) freeMACs(ctx context.Context, vm inventory.VM) []clientv3.Op {
	var all []clientv3.Op
	for _, n := range vm.Spec.NICs {
		if owner, err := w.s.MACOwner(ctx, n.MAC); err == nil && owner == vm.ID {
			all = append(all, clientv3.OpDelete(keyMAC(n.MAC)))
		}
	}
	return all
}

// whoseMAC explains a VM that could not be created though its name is free.
func (w *Writer) whoseMAC(ctx context.Context, vm inventory.VM) error {
	for _, n := range vm.Spec.NICs {
		owner, err := w.s.MACOwner(ctx, n.MAC)
		if err != nil {
			return err
		}
		if owner != "" && owner != vm.ID {
			return macTaken(n, owner)
		}
	}
	return fault.New(fault.Conflict, "the store changed meanwhile: try again")
}

func macTaken(n inventory.NIC, owner inventory.VMID) error {
	return fault.New(fault.Exists, "%s: %w: %s belongs to vm %s: choose another, or leave it out", n.Name, ErrMACTaken, n.MAC, owner)
}

// MACOwner returns the VM that has the MAC address, "" for none. VMs of before these records were kept do not count.
func (s *Store) MACOwner(ctx context.Context, mac string) (inventory.VMID, error) {
	owner, _, err := load(ctx, s, keyMAC(mac), macs)
	return owner.value, err
}

// TakeMAC makes the NIC's MAC address the VM's before the NIC is added to it; ErrMACTaken when another VM has it. Taking one's own again
// is no error.
func (w *Writer) TakeMAC(ctx context.Context, vm inventory.VMID, n inventory.NIC) error {
	free, take, err := takeMACs(inventory.VM{ID: vm, Spec: inventory.VMSpec{NICs: []inventory.NIC{n}}})
	if err != nil {
		return err
	}
	done, err := w.commit(ctx, append(free, exists(keyVM(vm, partSpec))), take...)
	if err != nil || done {
		return err
	}
	owner, err := w.s.MACOwner(ctx, n.MAC)
	switch {
	case err != nil || owner == vm:
		return err
	case owner != "":
		return macTaken(n, owner)
	}
	return noVM(string(vm))
}

// ReleaseMAC lets go of a MAC address after the NIC was taken out of the VM. One that is not the VM's is left alone.
func (w *Writer) ReleaseMAC(ctx context.Context, vm inventory.VMID, mac string) error {
	owner, revision, err := load(ctx, w.s, keyMAC(mac), macs)
	if err != nil || revision == 0 || owner.value != vm {
		return err
	}
	_, err = w.commit(ctx, []clientv3.Cmp{unchanged(keyMAC(mac), revision)}, clientv3.OpDelete(keyMAC(mac)))
	return err
}
