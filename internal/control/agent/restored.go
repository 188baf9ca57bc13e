package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A store that was restored from a backup says of a VM what was true then. What has happened since stands in the lock records on the
// datastores: whoever started or received the VM made one with a generation beyond the backup's (VMRun.Restored) before its vCPUs ran.
// So the newest such record says who has it:
//
//	nobody's       as the store has it
//	this host's    this host has it: it takes it over in the store, and goes on
//	another's      it may run there: what runs here is ended, and nothing is started here
//
// A host that was cut off while its VMs were started elsewhere would otherwise, back in a store that has forgotten its fence, let them run on.

// since returns the newest lock record of the VM beyond the generation, on all of this host's datastores: the VM's spec may be as old as the
// backup, or not be there.
func (a *Agent) since(id inventory.VMID, generation inventory.Generation) (newest datastore.Record, found bool, err error) {
	for _, ds := range a.stores {
		records, err := ds.Locks(id)
		if err != nil {
			return newest, false, err
		}
		for _, r := range records {
			if r.Generation > generation && r.Generation >= newest.Generation {
				newest, found = r, true
			}
		}
	}
	return newest, found, nil
}

// settleRestored ends, before anything on this host is let run on, what another host has taken since the backup. A VM whose records cannot be
// read is left as it is when nobody else can have it, and ended like the others when the record is there and says nothing.
func (a *Agent) settleRestored(ctx context.Context) error {
	dirs, err := os.ReadDir(filepath.Join(a.RunDir, "vms"))
	if err != nil {
		return fault.New(fault.Internal, "run directory: %w", err)
	}
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return err
	}
	restored := map[inventory.VMID]inventory.Generation{}
	for _, vm := range all {
		restored[vm.ID] = vm.Run.Restored
	}
	for _, d := range dirs {
		id := inventory.VMID(d.Name())
		newest, found, err := a.since(id, restored[id])
		if err != nil {
			return err
		}
		if !found || newest.Host == a.Host() {
			continue
		}
		if err := a.endCopy(ctx, id); err != nil {
			return err
		}
		a.noteEnded(ctx, id, newest.Host)
	}
	return nil
}

// noteEnded tells of a copy that was ended.
func (a *Agent) noteEnded(ctx context.Context, id inventory.VMID, by inventory.HostID) {
	a.Log.LogAttrs(ctx, slog.LevelWarn, "ended a copy that another host has taken since the backup", slog.String("vm", string(id)), slog.String("host", string(by)))
	a.tasks.Event(ctx, inventory.Event{
		Kind: "vm.ended", Severity: inventory.Warning, Object: string(id), ObjectName: string(id),
		Message: "the store was restored from a backup, and host " + string(by) + " has taken the VM since: the copy here was ended",
	})
}

// endTaken ends a VM's process when another host has taken the VM since the backup, and returns what is left of it, nil when nothing is. settleRestored
// has done so before; this is the last look before the VM may run on, and the first for a process whose agent found its datastore away.
func (a *Agent) endTaken(ctx context.Context, stored inventory.VM, process *qemu.Process) (*qemu.Process, error) {
	if stored.Run.Restored == 0 || process == nil {
		return process, nil
	}
	newest, found, err := a.since(stored.ID, stored.Run.Restored)
	if err != nil || !found || newest.Host == a.Host() {
		return process, err
	}
	if err := process.Kill(ctx); err != nil {
		return process, err
	}
	a.noteEnded(ctx, stored.ID, newest.Host)
	return nil, process.Cleanup()
}

// endCopy kills the VM's process here, if there is one.
func (a *Agent) endCopy(ctx context.Context, id inventory.VMID) error {
	within, done := context.WithTimeout(ctx, adoptMax)
	defer done()
	process, _ := qemu.Adopt(within, a.runDirOf(id)) // a silent monitor is no reason to let it live
	if process == nil {
		return nil // nothing runs
	}
	return end(within, process)
}

// takeRestored makes this host the owner of a VM that runs here, when the newest lock record says that it is. Only the restored record is
// changed: from then on the VM is like any other.
func (a *Agent) takeRestored(ctx context.Context, vm inventory.VM) (inventory.VM, error) {
	newest, found, err := a.since(vm.ID, vm.Run.Restored)
	if err != nil {
		return vm, err
	}
	mine := found && newest.Host == a.Host()
	if !mine && (found || vm.Run.Owner != a.Host()) {
		return vm, nil
	}
	vm.Run, err = a.writer.UpdateRun(ctx, vm.ID, func(r *inventory.VMRun) error {
		if r.Restored == 0 || !r.Heir.IsZero() {
			return fault.New(fault.Conflict, "its record was changed by others meanwhile")
		}
		r.Owner, r.Wanted, r.Restored = a.Host(), inventory.PowerOn, 0
		return nil
	})
	if err == nil && mine {
		a.tasks.Event(ctx, inventory.Event{
			Kind: "vm.taken-over", Object: string(vm.ID), ObjectName: vm.Spec.Name,
			Message: "the store was restored from a backup, and the VM has run on this host since then",
		})
	}
	return vm, err
}

// settled refuses what must not be done to a VM that another host may have taken since the backup.
func (a *Agent) settled(vm inventory.VM) error {
	if vm.Run.Restored == 0 {
		return nil
	}
	newest, found, err := a.since(vm.ID, vm.Run.Restored)
	if err != nil {
		return err
	}
	if !found || newest.Host == a.Host() {
		return nil
	}
	return fault.New(fault.Conflict, "the store was restored from a backup, and host %s has taken the VM since (lock record %d): start godwit on that host, which takes it over if it runs there; "+
		"if it surely does not run there, remove the file locks/%s.lock.%d on its datastore", newest.Host, newest.Generation, vm.ID, newest.Generation)
}

// unknown tells of a VM that runs here and has no record. It is never ended for want of one.
func (a *Agent) unknown(ctx context.Context, id inventory.VMID) {
	dir := string(a.runDirOf(id))
	a.Log.LogAttrs(ctx, slog.LevelError, "a vm runs here that the store does not know", slog.String("vm", string(id)), slog.String("dir", dir))
	a.tasks.Event(ctx, inventory.Event{
		Kind: "vm.unknown", Severity: inventory.Error, Object: string(id), ObjectName: string(id),
		Message: "a VM runs on this host that the store does not know, most likely because it was made after the backup that the store was restored from: " +
			"it is left alone; shut it down from within, and make a VM of its disks",
	})
}
