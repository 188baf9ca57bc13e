package store

import (
	"context"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func noVM(nameOrID string) error {
	return fault.New(fault.NotFound, "no vm %q: see godwit vm ls", nameOrID)
}

// VMs returns all VMs as of one moment, ordered by name. Usage is not stored and therefore empty.
func (s *Store) VMs(ctx context.Context) ([]inventory.VM, error) {
	resp, err := s.get(ctx, rootVM, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "vms", err)
	}
	vms, err := gatherVMs(resp.Kvs)
	if err != nil {
		return nil, fault.Wrap("list", "vms", err)
	}
	slices.SortFunc(vms, func(a, b inventory.VM) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return vms, nil
}

// gatherVMs puts the parts together. Keys come ordered, so the parts of a VM follow one another. What has no spec is no
// VM: its spec is the first key that is made and the last that goes.
func gatherVMs(kvs []*mvccpb.KeyValue) ([]inventory.VM, error) {
	var vms []inventory.VM
	var vm inventory.VM
	var whole bool
	flush := func() {
		if whole {
			vms = append(vms, vm)
		}
	}
	for _, kv := range kvs {
		key := string(kv.GetKey())
		id, part := split(rootVM, key)
		if vm.ID != inventory.VMID(id) {
			flush()
			vm, whole = inventory.VM{ID: inventory.VMID(id)}, false
		}
		var err error
		switch part {
		case partSpec:
			whole = true
			vm.Spec, err = read(vmSpecs, key, kv)
		case partRun:
			vm.Run, err = read(vmRuns, key, kv)
		case partStatus:
			vm.Status, err = read(vmStatuses, key, kv)
		case partPlace:
			vm.Place, err = read(vmPlaces, key, kv)
		}
		if err != nil {
			return nil, err
		}
	}
	flush()
	return vms, nil
}

func read[T any](c codec[T], key string, kv *mvccpb.KeyValue) (T, error) {
	rec, err := c.unpack(key, kv.GetValue())
	return rec.value, err
}

// VM returns the VM of that id or, when there is none, of that name; fault.NotFound when neither exists.
func (s *Store) VM(ctx context.Context, nameOrID string) (inventory.VM, error) {
	if checkID("vm", nameOrID) != nil {
		return inventory.VM{}, noVM(nameOrID)
	}
	vm, err := s.vmByID(ctx, inventory.VMID(nameOrID))
	if !fault.Is(err, fault.NotFound) {
		return vm, err
	}
	name, revision, err := load(ctx, s, keyVMName(nameOrID), vmNames)
	if err != nil {
		return inventory.VM{}, err
	}
	if revision == 0 {
		return inventory.VM{}, noVM(nameOrID)
	}
	return s.vmByID(ctx, name.value)
}

func (s *Store) vmByID(ctx context.Context, id inventory.VMID) (inventory.VM, error) {
	resp, err := s.get(ctx, keyVM(id, ""), clientv3.WithPrefix())
	if err != nil {
		return inventory.VM{}, err
	}
	vms, err := gatherVMs(resp.Kvs)
	if err != nil {
		return inventory.VM{}, err
	}
	if len(vms) == 0 {
		return inventory.VM{}, noVM(string(id))
	}
	return vms[0], nil
}

// CreateVM records a new VM: its spec, and its run record as given. A name that is taken is fault.Exists. Creating the
// A MAC address that another VM has is ErrMACTaken. Creating the same VM (by id) again does nothing, so a call whose answer was lost may be repeated.
func (w *Writer) CreateVM(ctx context.Context, vm inventory.VM) error {
	if err := checkID("vm", vm.ID); err != nil {
		return err
	}
	if err := inventory.CheckName("vm", vm.Spec.Name); err != nil {
		return err
	}
	op := "create"
	object := "vm " + vm.Spec.Name
	spec, err := vmSpecs.pack(vm.Spec)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	run, err := vmRuns.pack(vm.Run)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	name, err := vmNames.pack(vm.ID)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	nameKey, specKey := keyVMName(vm.Spec.Name), keyVM(vm.ID, partSpec)
	free, take, err := w.changeMACs(ctx, vm.ID, nil, vm.Spec.NICs)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	done, err := w.add(ctx,
		append(free, absent(nameKey), absent(specKey)),
		append(take, clientv3.OpPut(nameKey, name), clientv3.OpPut(specKey, spec), clientv3.OpPut(keyVM(vm.ID, partRun), run))...)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	if done {
		return nil
	}
	owner, revision, err := load(ctx, w.s, nameKey, vmNames)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	if revision != 0 && owner.value == vm.ID {
		return nil
	}
	if revision == 0 {
		if err := w.macTaken(ctx, vm.ID, vm.Spec.NICs); err != nil {
			return fault.Wrap(op, object, err)
		}
		return fault.New(fault.Conflict, "create vm %s: the store changed meanwhile: try again", vm.Spec.Name)
	}
	return fault.New(fault.Exists, "create vm %s: the name is taken: choose another, or remove that one with godwit vm destroy %s", vm.Spec.Name, vm.Spec.Name)
}

// DeleteVM removes a VM from the inventory, name and all. It refuses with fault.Conflict a VM that is wanted on, has an
// heir, or has a migration that is not over. may is asked last about the VM as it is, and its error ends the deletion;
// nil asks nothing. What was found is compared again in the transaction.
func (w *Writer) DeleteVM(ctx context.Context, id inventory.VMID, may func(inventory.VM) error) error {
	for range attemptsMax {
		resp, err := w.s.get(ctx, keyVM(id, ""), clientv3.WithPrefix())
		if err != nil {
			return fault.Wrap("destroy", "vm "+string(id), err)
		}
		vms, err := gatherVMs(resp.Kvs)
		if err != nil {
			return fault.Wrap("destroy", "vm "+string(id), err)
		}
		if len(vms) == 0 {
			return noVM(string(id))
		}
		vm := vms[0]
		revisions := map[string]int64{}
		for _, kv := range resp.Kvs {
			revisions[string(kv.Key)] = kv.ModRevision
		}
		specKey, runKey, migrationKey := keyVM(id, partSpec), keyVM(id, partRun), keyVM(id, partMigration)
		if err := mayDelete(vm, revisions[migrationKey] != 0, may); err != nil {
			return fault.Wrap("destroy", "vm "+vm.Spec.Name, err)
		}
		still, free, err := w.changeMACs(ctx, id, vm.Spec.NICs, nil)
		if err != nil {
			return fault.Wrap("destroy", "vm "+vm.Spec.Name, err)
		}
		done, err := w.commit(ctx,
			append(still, unchanged(specKey, revisions[specKey]), unchanged(runKey, revisions[runKey]), absent(migrationKey)),
			append(free, clientv3.OpDelete(keyVM(id, ""), clientv3.WithPrefix()), clientv3.OpDelete(keyVMName(vm.Spec.Name)))...)
		if err != nil {
			return fault.Wrap("destroy", "vm "+vm.Spec.Name, err)
		}
		if done {
			return nil
		}
	}
	return fault.New(fault.Conflict, "destroy vm %s: it was changed by others %d times meanwhile: try again", id, attemptsMax)
}

func mayDelete(vm inventory.VM, migrating bool, may func(inventory.VM) error) error {
	switch {
	case migrating || !vm.Run.Heir.IsZero():
		return fault.New(fault.Conflict, "it is migrating: wait for that, or cancel it with godwit migration cancel")
	case vm.Run.Wanted != inventory.PowerOff:
		return fault.New(fault.Conflict, "it is on: stop it first with godwit vm stop %s", vm.Spec.Name)
	case may != nil:
		return may(vm)
	}
	return nil
}

// UpdateRun changes who may run the VM: change gets the record as it is now and may be called several times; its error
// ends the update and is returned as it is. Under contention it is tried attemptsMax times, then fault.Conflict. It
// returns what the store holds now. The rules of who may write what are the caller's (policy/handover).
func (w *Writer) UpdateRun(ctx context.Context, id inventory.VMID, change func(*inventory.VMRun) error) (inventory.VMRun, error) {
	return apply(ctx, w, edit[inventory.VMRun]{
		what:    "run record of vm " + string(id),
		key:     keyVM(id, partRun),
		codec:   vmRuns,
		missing: noVM(string(id)),
		change:  change,
	})
}

// NameHeir is UpdateRun for a change that names the host as the VM's heir. One that leaves the cluster, or has left it, is fault.Conflict:
// whoever takes it out has looked already whether a VM needs it.
func (w *Writer) NameHeir(ctx context.Context, id inventory.VMID, host inventory.HostID, change func(*inventory.VMRun) error) (inventory.VMRun, error) {
	var leaves error
	return apply(ctx, w, edit[inventory.VMRun]{
		what: "run record of vm " + string(id), key: keyVM(id, partRun), codec: vmRuns, missing: noVM(string(id)),
		before: func(ctx context.Context) (stays []clientv3.Cmp, err error) {
			if stays, leaves = w.stays(ctx, host); fault.Is(leaves, fault.Conflict) {
				return stays, nil
			}
			return stays, leaves
		},
		change: func(run *inventory.VMRun) error {
			was := run.Heir
			if err := change(run); err != nil {
				return err
			}
			if run.Heir != was { // one that was named by a call whose answer was lost stays
				return leaves
			}
			return nil
		},
	})
}

// stays compares that a host is in the cluster and is not to leave it; fault.Conflict when that is not so.
func (w *Writer) stays(ctx context.Context, host inventory.HostID) ([]clientv3.Cmp, error) {
	epoch, err := w.s.get(ctx, keyHost(host, partEpoch), clientv3.WithCountOnly())
	if err != nil {
		return nil, err
	}
	leaving, err := w.s.get(ctx, keyRemoval(host), clientv3.WithCountOnly())
	if err != nil {
		return nil, err
	}
	if epoch.Count == 0 || leaving.Count != 0 {
		err = fault.New(fault.Conflict, "host %s leaves the cluster", host)
	}
	return []clientv3.Cmp{exists(keyHost(host, partEpoch)), absent(keyRemoval(host))}, err
}

// PutVMStatus writes how the VM is. Only the VM's owner may: another host gets fault.Conflict, so that a source that is
// late cannot write over what the target says. The usage is left out.
func (w *Writer) PutVMStatus(ctx context.Context, id inventory.VMID, status inventory.VMStatus) error {
	runKey := keyVM(id, partRun)
	_, err := apply(ctx, w, edit[inventory.VMStatus]{
		what:  "status of vm " + string(id),
		key:   keyVM(id, partStatus),
		codec: vmStatuses,
		before: func(ctx context.Context) ([]clientv3.Cmp, error) {
			run, revision, err := load(ctx, w.s, runKey, vmRuns)
			switch {
			case err != nil:
				return nil, err
			case revision == 0:
				return nil, noVM(string(id))
			case run.value.Owner != w.host:
				return nil, fault.New(fault.Conflict, "status of vm %s is written by its owner %s, not by %s", id, run.value.Owner, w.host)
			}
			return []clientv3.Cmp{unchanged(runKey, revision)}, nil
		},
		change: func(s *inventory.VMStatus) error {
			*s = status
			return nil
		},
	})
	return err
}
