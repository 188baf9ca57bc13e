package agent

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/journal"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// datastores lists the datastores that a VM needs, each once: those of its disks first.
func datastores(spec inventory.VMSpec) []inventory.DatastoreID {
	var ids []inventory.DatastoreID
	seen := map[inventory.DatastoreID]bool{"": true}
	add := func(f inventory.File) {
		if !seen[f.Datastore] {
			seen[f.Datastore] = true
			ids = append(ids, f.Datastore)
		}
	}
	for _, d := range spec.Disks {
		add(d.File)
	}
	add(spec.Boot.Firmware)
	add(spec.Boot.Kernel)
	add(spec.Boot.Initrd)
	add(spec.Boot.Vars)
	return ids
}

// lock makes the VM's lock record of the generation on each of its datastores. One that is there already means that
// somebody else started or receives the VM with this generation: fault.Conflict.
func (a *Agent) lock(vm inventory.VM, generation inventory.Generation) error {
	for _, id := range datastores(vm.Spec) {
		ds := a.stores[id]
		if ds == nil {
			return fault.New(fault.NotFound, "datastore %s is not mounted on %s", id, a.Host())
		}
		if err := ds.Lock(vm.ID, generation, a.Host()); err != nil {
			return err
		}
	}
	return nil
}

// holds returns fault.Conflict unless the VM's lock record of the generation is the highest on each of its datastores.
func (a *Agent) holds(vm inventory.VM, generation inventory.Generation) error {
	for _, id := range datastores(vm.Spec) {
		held, err := a.stores[id].Holds(vm.ID, generation)
		if err != nil {
			return err
		}
		if !held {
			return fault.New(fault.Conflict, "another host has taken a higher lock record on datastore %s: see godwit vm info %s", a.stores[id].Name, vm.Spec.Name)
		}
	}
	return nil
}

// unlock removes the VM's lock records up to the generation it left with, but never the highest. They are of no use any
// more and a failure to remove them does no harm; it is returned to be logged.
func (a *Agent) unlock(vm inventory.VM) error {
	var all error
	for _, id := range datastores(vm.Spec) {
		if ds := a.stores[id]; ds != nil {
			all = errors.Join(all, ds.Prune(vm.ID, vm.Run.Generation))
		}
	}
	return all
}

// locks says for each datastore of the VM whether a lock record that the source made for it can be seen here, which proves
// that both look at the same file system.
func (a *Agent) locks(vm inventory.VM, source inventory.HostID) map[inventory.DatastoreID]bool {
	seen := map[inventory.DatastoreID]bool{}
	for _, id := range datastores(vm.Spec) {
		if vm.Status.State == inventory.Stopped || vm.Status.State == inventory.Crashed {
			seen[id] = true // nobody holds it, so nothing is proved; that it does not run is reason enough
			continue
		}
		if ds := a.stores[id]; ds != nil {
			records, err := ds.Locks(vm.ID)
			seen[id] = err == nil && slices.ContainsFunc(records, func(r datastore.Record) bool { return r.Host == source })
		}
	}
	return seen
}

// forget removes what a destroyed VM left on disk and in the run directory: its seed always, its images on request.
func (a *Agent) forget(ctx context.Context, vm inventory.VM, deleteDisks bool) error {
	var all error
	for _, id := range datastores(vm.Spec) {
		if ds := a.stores[id]; ds != nil {
			all = errors.Join(all, ds.Forget(vm.ID))
		}
	}
	all = errors.Join(all, a.removeImagesOf(ctx, vm, deleteDisks))
	if deleteDisks {
		all = errors.Join(all, a.removeVars(vm))
	}
	return errors.Join(all, journal.Remove(a.journal(vm.ID).path))
}

// journal is the VM's journal on this host. It outlives the run directory: what it says of a migration may be asked later.
func (a *Agent) journal(id inventory.VMID) entries {
	return entries{filepath.Join(a.RunDir, "journal", string(id))}
}
