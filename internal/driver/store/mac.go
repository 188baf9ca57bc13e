package store

import (
	"context"
	"errors"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// ErrMACTaken is in the chain of an error that says that a MAC address belongs to another VM of the cluster. Its kind is fault.Exists.
var ErrMACTaken = errors.New("the MAC address is taken")

// MACOwner returns the VM that has the MAC address, "" for none. NICs that were made before these records were kept have none.
func (s *Store) MACOwner(ctx context.Context, mac string) (inventory.VMID, error) {
	owner, _, err := load(ctx, s, keyMAC(mac), macs)
	return owner.value, err
}

// changeMACs returns what a transaction compares and writes so that the addresses of the NICs that a VM gets become its own, and those of the
// NICs that it loses are free.
func (w *Writer) changeMACs(ctx context.Context, id inventory.VMID, was, will []inventory.NIC) (cmps []clientv3.Cmp, ops []clientv3.Op, err error) {
	value, err := macs.pack(id)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range without(will, was) {
		cmps = append(cmps, absent(keyMAC(n.MAC)))
		ops = append(ops, clientv3.OpPut(keyMAC(n.MAC), value))
	}
	for _, n := range without(was, will) {
		owner, revision, err := load(ctx, w.s, keyMAC(n.MAC), macs)
		if err != nil {
			return nil, nil, err
		}
		if revision != 0 && owner.value == id {
			cmps = append(cmps, unchanged(keyMAC(n.MAC), revision))
			ops = append(ops, clientv3.OpDelete(keyMAC(n.MAC)))
		}
	}
	return cmps, ops, nil
}

// without lists the NICs whose addresses are not among those of others.
func without(nics, others []inventory.NIC) []inventory.NIC {
	return slices.DeleteFunc(slices.Clone(nics), func(n inventory.NIC) bool {
		return slices.ContainsFunc(others, func(o inventory.NIC) bool { return o.MAC == n.MAC })
	})
}

// macTaken returns ErrMACTaken when one of the NICs' addresses is another VM's, after a transaction that failed.
func (w *Writer) macTaken(ctx context.Context, id inventory.VMID, nics []inventory.NIC) error {
	for _, n := range nics {
		owner, err := w.s.MACOwner(ctx, n.MAC)
		if err != nil {
			return err
		}
		if owner != "" && owner != id {
			return fault.New(fault.Exists, "%s: %w: %s belongs to vm %s: choose another, or leave it out", n.Name, ErrMACTaken, n.MAC, owner)
		}
	}
	return nil
}
