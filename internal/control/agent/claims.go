package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A file that an operation makes or leaves is claimed on its datastore first (datastore.Claim). What becomes of it is decided by the
// store alone: it stays if a VM's spec has it, and goes if none has. That may be asked as often as one likes, but only when
// the transaction that could still give it to a VM is over for certain: it was answered, its VM's run record was changed since, or the
// epoch of an agent that it compares is over.

// claim notes on the datastore that the files belong to the VM or to nobody, by a decision of this agent.
func (a *Agent) claim(ds *datastore.Datastore, op string, vm inventory.VMID, files ...string) error {
	return ds.Claim(datastore.Claim{Host: a.Host(), Op: op, Driver: a.Host(), Epoch: a.writer.Epoch(), VM: vm, Files: files})
}

// files lists all files that a VM of the spec needs.
func files(spec inventory.VMSpec) []inventory.File {
	var all []inventory.File
	for _, d := range spec.Disks {
		all = append(all, d.File)
	}
	for _, f := range []inventory.File{spec.Boot.Firmware, spec.Boot.Kernel, spec.Boot.Initrd, spec.Boot.Vars} {
		if !f.IsZero() {
			all = append(all, f)
		}
	}
	return all
}

// settleClaim ends this host's claims of an operation: it looks into the store for what became of the files and removes those
// that no VM has. The caller knows that nothing more can come of the operation. What cannot be settled now is at the next start
// of the agent.
func (a *Agent) settleClaim(ctx context.Context, op string) {
	undo, done := undoing(ctx)
	defer done()
	a.settle(undo, func(c datastore.Claim) bool { return c.Op == op })
}

// settle ends this host's claims that match.
func (a *Agent) settle(ctx context.Context, match func(datastore.Claim) bool) {
	warn := func(err error) {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "files of a claim stay for now", slog.Any("err", err))
	}
	var owned []inventory.File
	read := false
	for _, ds := range a.stores {
		claims, err := ds.Claims(a.Host())
		if err != nil {
			warn(err)
			continue
		}
		for _, c := range claims {
			if !match(c) {
				continue
			}
			if !read { // after the claim was seen, and after the end of what it was for
				vms, err := a.Store.VMs(ctx)
				if err != nil {
					warn(err)
					return
				}
				for _, vm := range vms {
					owned = append(owned, files(vm.Spec)...)
				}
				read = true
			}
			if err := a.settleFiles(ctx, ds, c, owned); err != nil {
				warn(err)
			}
		}
	}
}

// settleFiles removes the claim's files that nobody owns, and then the claim.
func (a *Agent) settleFiles(ctx context.Context, ds *datastore.Datastore, c datastore.Claim, owned []inventory.File) error {
	for _, path := range c.Files {
		if slices.Contains(owned, inventory.File{Datastore: ds.ID, Path: path}) {
			continue
		}
		if _, err := ds.Stat(path); fault.Is(err, fault.NotFound) {
			continue
		}
		if err := ds.Remove(path); err != nil {
			return err
		}
		a.Log.LogAttrs(ctx, slog.LevelInfo, "file removed that no vm has", slog.String("vm", string(c.VM)),
			slog.String("datastore", ds.Name), slog.String("file", path))
	}
	return ds.Unclaim(a.Host(), c.Op)
}

// finish gives a part its name. A name that somebody else took meanwhile is taken out of the claim: that file is not ours to remove.
func (a *Agent) finish(part *datastore.Part, op string, f inventory.File) error {
	return a.unlessTaken(part.Finish(f.Path), op, f)
}

// unlessTaken returns err, which making a file ended with, and takes a name that somebody else took meanwhile out of the claim.
func (a *Agent) unlessTaken(err error, op string, f inventory.File) error {
	if !fault.Is(err, fault.Exists) {
		return err
	}
	ds := a.stores[f.Datastore]
	claims, read := ds.Claims(a.Host())
	for _, c := range claims {
		if c.Op == op {
			c.Files = slices.DeleteFunc(c.Files, func(path string) bool { return path == f.Path })
			read = errors.Join(read, ds.Claim(c))
		}
	}
	return errors.Join(err, read)
}

// sweepFiles ends what the former agent of this host left in the middle. Its epoch is over, so nothing can come of it any more; and
// every move to this host compares this host's epoch.
func (a *Agent) sweepFiles(ctx context.Context) {
	for _, ds := range a.stores {
		if err := ds.SweepParts(a.Host()); err != nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "unfinished files stay", slog.Any("err", err))
		}
	}
	a.settle(ctx, func(datastore.Claim) bool { return true })
}

// unknown reports whether a transaction that ended with err may have been done, or be done later.
func unknown(err error) bool {
	return fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Canceled)
}

// burn makes sure that a transaction of unknown outcome has been done or never will be: it raises the VM's generation, which each
// of them compares. It returns the run record as it is then; an error means that nobody knows yet.
func (a *Agent) burn(ctx context.Context, id inventory.VMID) (inventory.VMRun, error) {
	var now inventory.VMRun
	_, err := a.writer.UpdateRun(ctx, id, func(r *inventory.VMRun) error {
		now = *r
		if r.Owner != a.Host() {
			return errElsewhere // it was done
		}
		r.Generation++
		now = *r
		return nil
	})
	if err == errElsewhere { //nolint:errorlint // returned as it is
		err = nil
	}
	return now, err
}

var errElsewhere = fault.New(fault.Conflict, "it is another host's")
