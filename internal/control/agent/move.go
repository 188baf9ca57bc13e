package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
)

// A cold migration brings a VM that is off to another host, another datastore, or both:
//
//	hold ─► admit ─► claim, burn a generation ─► copy (part, fsync, link) ─► one transaction: spec and owner ─► remove the originals
//
// Up to the transaction the VM is where it was and whole there; from it on, where it was to be. It compares the run record and the
// epochs of both agents. What a crash leaves is claimed: the next start of the agent that claimed it, or the next try, removes it
// (claims.go, docs/decisions/0012).

// MoveVM is a request for a cold migration.
type MoveVM struct {
	Host      inventory.HostID // empty: it stays on its host
	Datastore string           // name or id on that host; empty: its disks stay where they are
}

// moving is a planned move.
type moving struct {
	op     string
	vm     inventory.VM // as it is
	target inventory.Host
	spec   inventory.VMSpec // as it is to be
	files  []movingFile

	epoch   uint64           // of the target's agent
	present []inventory.File // that the target has already
}

// movingFile is a file that goes to another datastore.
type movingFile struct {
	disk     string // its name in the VM; empty for others
	from, to inventory.File
	path     string // of the original
	size     int64  // what it takes on its disk
	keep     bool   // other VMs may use the original: it stays, and a copy that is there already will do
	sum      []byte // of a file to keep
}

// away reports whether the move leaves this host.
func (m *moving) away(a *Agent) bool { return m.target.ID != a.Host() }

// Move moves a VM that is off. Every reason against it is listed at once. Run again after whatever went wrong, it completes or
// says that the VM is there.
func (a *Agent) Move(ctx context.Context, id inventory.VMID, want MoveVM) (vm inventory.VM, err error) {
	v, err := a.own(id)
	if err != nil {
		return vm, err
	}
	name := v.record().Spec.Name
	err = a.tasks.Run(ctx, "vm.move", string(id), name, func(ctx context.Context, t *task.Task) error {
		return a.move(ctx, v, want, t)
	})
	if err != nil {
		return vm, fault.Wrap("move", "vm "+name, err)
	}
	return a.VM(ctx, string(id))
}

func (a *Agent) move(ctx context.Context, v *vm, want MoveVM, t *task.Task) (err error) {
	m, err := a.planMove(ctx, v, want)
	if err != nil {
		return err
	}
	where := string(m.target.ID)
	release, err := v.hold(ctx, "it is being moved to "+where, false, func(vm inventory.VM) error {
		if vm.Status.State != inventory.Stopped || !sameSpec(vm.Spec, m.vm.Spec) {
			return fault.New(fault.Conflict, "it was changed meanwhile: try again")
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer release()
	// Whatever an earlier try left is decided now: its transaction can no longer be done.
	run, err := a.burn(ctx, v.id)
	if err != nil {
		return err
	}
	if run.Owner != a.Host() {
		return fault.New(fault.Conflict, "it moved to %s meanwhile: try again", run.Owner)
	}
	a.settleVM(ctx, v.id)
	committed := false
	defer func() {
		undo, done := undoing(ctx)
		defer done()
		if unknown(err) && !committed {
			if _, burnt := a.burn(undo, v.id); burnt != nil {
				return // nobody knows yet what becomes of the files: the next try, or start of an agent, settles it
			}
		}
		if m.away(a) {
			if end := a.endMove(undo, m); end != nil {
				a.Log.LogAttrs(ctx, slog.LevelWarn, "the target settles a move later", slog.String("vm", string(v.id)), slog.Any("err", end))
			}
		}
		a.settleClaim(undo, m.op)
	}()
	if err := a.beginMove(ctx, m); err != nil {
		return err
	}
	if err := a.copyAll(ctx, m, t); err != nil {
		return err
	}
	t.Progress(1, 1, "switching over to "+where)
	if err := a.commitMove(ctx, m, run.Generation); err != nil {
		return err
	}
	committed = true
	a.leaveOld(ctx, v, m)
	return nil
}

// planMove resolves what is wanted, and refuses with every reason of both hosts.
func (a *Agent) planMove(ctx context.Context, v *vm, want MoveVM) (*moving, error) {
	m := &moving{op: newOp(), vm: v.record()}
	self, err := a.describe(ctx)
	if err != nil {
		return nil, err
	}
	asked := want.Host
	if asked == "" {
		asked = a.Host()
	}
	facts := admission.Departure{VM: m.vm, Source: self, Asked: asked, Datastore: want.Datastore}
	if asked == a.Host() {
		m.target = self
	} else if m.target, err = a.Store.Host(ctx, asked); err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	facts.Target = m.target
	var to inventory.DatastoreID
	for _, mount := range m.target.Spec.Datastores {
		if want.Datastore != "" && !facts.Found && (mount.Name == want.Datastore || string(mount.ID) == want.Datastore) {
			to, facts.Found = mount.ID, true
		}
	}
	if err := a.planFiles(m, to); err != nil {
		return nil, err
	}
	var leaving []inventory.File
	for _, f := range m.files {
		if f.keep {
			continue
		}
		leaving = append(leaving, f.from)
		facts.Leaves = append(facts.Leaves, f.disk)
		if base, err := a.backing(f.from); err == nil && base != "" {
			facts.Thin = append(facts.Thin, f.disk)
		}
	}
	if m.vm.Spec.Template {
		if facts.Clones, err = a.clonesOf(ctx, leaving); err != nil {
			return nil, err
		}
	}
	var there []string
	if m.target.ID != "" {
		there, err = a.arrival(ctx, m, true)
		if fault.Is(err, fault.Unavailable) {
			facts.Silent = err.Error()
		} else if err != nil {
			return nil, err
		}
	}
	bad := admission.CheckDeparture(facts)
	for _, reason := range there {
		for _, ds := range a.stores { // the target may not know them by name
			reason = strings.ReplaceAll(reason, string(ds.ID), ds.Name)
		}
		if !slices.Contains(bad, reason) {
			bad = append(bad, reason)
		}
	}
	kind := fault.Incompatible
	switch {
	case m.target.ID == "":
		kind = fault.NotFound
	case facts.Silent != "":
		kind = fault.Unavailable
	case m.vm.Status.State != inventory.Stopped:
		kind = fault.Conflict
	}
	return m, fault.Refuse(kind, bad)
}

// planFiles says which files go where when the disks are to be on the datastore; none is copied when that is empty. Kernel, initrd and
// firmware are copied only if the target has not mounted their datastore.
func (a *Agent) planFiles(m *moving, to inventory.DatastoreID) error {
	m.spec = m.vm.Spec
	m.spec.Disks = slices.Clone(m.spec.Disks)
	if to == "" {
		return nil
	}
	var names []string
	plan := func(f *inventory.File, disk, otherwise string, keep bool) error {
		if f.IsZero() || f.Datastore == to {
			return nil
		}
		original, err := a.file(*f)
		if err != nil {
			return err
		}
		file := movingFile{disk: disk, from: *f, to: inventory.File{Datastore: to, Path: path.Base(f.Path)}, path: original, size: taken(original), keep: keep}
		if slices.Contains(names, file.to.Path) {
			file.to.Path = otherwise
		}
		if keep {
			if file.sum, err = sumOf(original); err != nil {
				return fault.New(fault.Unavailable, "%s: %w", f.Path, err)
			}
		}
		names = append(names, file.to.Path)
		m.files = append(m.files, file)
		*f = file.to
		return nil
	}
	name := m.spec.Name
	for i := range m.spec.Disks {
		d := &m.spec.Disks[i]
		if err := plan(&d.File, d.Name, name+"-"+d.Name+"."+string(d.Format), false); err != nil {
			return err
		}
	}
	if err := plan(&m.spec.Boot.Vars, "UEFI variables", name+"-vars.fd", false); err != nil {
		return err
	}
	for what, f := range map[string]*inventory.File{"kernel": &m.spec.Boot.Kernel, "initrd": &m.spec.Boot.Initrd, "firmware": &m.spec.Boot.Firmware} {
		mounted := slices.ContainsFunc(m.target.Spec.Datastores, func(d inventory.DatastoreMount) bool { return d.ID == f.Datastore })
		if mounted {
			continue
		}
		if err := plan(f, "", name+"-"+what, true); err != nil {
			return err
		}
	}
	return nil
}

// local reports whether this host copies to the datastore itself.
func (a *Agent) local(f movingFile) bool { return a.stores[f.to.Datastore] != nil }

// beginMove claims what may be left, on this host and on the target.
func (a *Agent) beginMove(ctx context.Context, m *moving) error {
	claims := map[inventory.DatastoreID][]string{}
	for _, id := range a.marked(m) {
		claims[id] = nil
	}
	for _, f := range m.files {
		if !f.keep {
			claims[f.from.Datastore] = append(claims[f.from.Datastore], f.from.Path)
		}
		if !a.local(f) {
			continue
		}
		if there, err := a.settleKept(f); err != nil {
			return err
		} else if there {
			continue
		}
		claims[f.to.Datastore] = append(claims[f.to.Datastore], f.to.Path)
	}
	for id, paths := range claims {
		if err := a.claim(a.stores[id], m.op, m.vm.ID, paths...); err != nil {
			return err
		}
	}
	reasons, err := a.arrival(ctx, m, false)
	if err != nil {
		return err
	}
	return fault.Refuse(fault.Incompatible, reasons)
}

// settleKept reports whether a file that other VMs use too is at its place already. Any other file that is there is fault.Exists.
func (a *Agent) settleKept(f movingFile) (bool, error) {
	ds := a.stores[f.to.Datastore]
	if _, err := ds.Stat(f.to.Path); fault.Is(err, fault.NotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if f.keep {
		if path, err := ds.Resolve(f.to.Path); err == nil {
			if sum, err := sumOf(path); err == nil && slices.Equal(sum, f.sum) {
				return true, nil
			}
		}
	}
	return false, fault.New(fault.Exists, "there is a file %s on datastore %s already: rename or remove it, or choose another datastore", f.to.Path, ds.Name)
}

// marked lists the datastores that both hosts must see as one and the same: those that files stay on, or that this host copies to.
func (a *Agent) marked(m *moving) []inventory.DatastoreID {
	if !m.away(a) {
		return nil
	}
	var ids []inventory.DatastoreID
	for _, id := range datastores(m.spec) {
		if a.stores[id] != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// copyAll brings every file to its place, whole and on the disk.
func (a *Agent) copyAll(ctx context.Context, m *moving, t *task.Task) error {
	var total, done int64
	for _, f := range m.files {
		total += f.size
	}
	for _, f := range m.files {
		what := fmt.Sprintf("copying %s to %s", f.to.Path, m.target.ID)
		t.Progress(done, total, what)
		began := done
		sent := func(n int) {
			done += int64(n)
			t.Progress(min(done, total), total, what)
		}
		if err := a.copyFile(ctx, m, f, sent); err != nil {
			return fault.Wrap("copy", f.from.Path, err)
		}
		done = began + f.size
	}
	return nil
}

func (a *Agent) copyFile(ctx context.Context, m *moving, f movingFile, sent func(int)) error {
	from, err := os.Open(f.path)
	if err != nil {
		return fault.New(fault.Unavailable, "%w", err)
	}
	defer func() { _ = from.Close() }() // only read
	if !a.local(f) {
		if f.sum != nil && m.has(f.to) {
			return nil
		}
		return a.sendFile(ctx, m, f, from, sent)
	}
	if there, err := a.settleKept(f); err != nil || there {
		return err
	}
	part, err := a.stores[f.to.Datastore].NewPart(a.Host())
	if err != nil {
		return err
	}
	defer part.Discard()
	stop := context.AfterFunc(ctx, func() { _ = from.Close() }) // ends the copy
	defer stop()
	if err := copyPieces(part.File, from, sent); err != nil {
		if ctx.Err() != nil {
			return fault.New(fault.Canceled, "%w", ctx.Err())
		}
		return fault.New(fault.Unavailable, "%w", err)
	}
	if err := a.User.Own(part.Path()); err != nil && !fault.Is(err, fault.Denied) {
		return err
	}
	return a.finish(part, m.op, f.to)
}

// commitMove switches the VM over, or says that it is not switched over. Only an error of an unknown outcome leaves that open.
func (a *Agent) commitMove(ctx context.Context, m *moving, generation inventory.Generation) error {
	guards := map[inventory.HostID]uint64{}
	if m.away(a) {
		guards[m.target.ID] = m.epoch
	}
	_, err := a.writer.UpdateVM(ctx, m.vm.ID, guards, func(vm *inventory.VM) error {
		if vm.Run.Generation != generation || vm.Run.Wanted != inventory.PowerOff || !sameSpec(vm.Spec, m.vm.Spec) {
			return fault.New(fault.Conflict, "it was changed meanwhile: try again")
		}
		vm.Spec, vm.Run.Owner = m.spec, m.target.ID
		vm.Run.Generation++
		return nil
	})
	if !unknown(err) {
		return err
	}
	undo, done := undoing(ctx)
	defer done()
	if _, burnt := a.burn(undo, m.vm.ID); burnt != nil {
		return err
	}
	if now, read := a.Store.VM(undo, string(m.vm.ID)); read == nil && now.Run.Owner == m.target.ID && sameSpec(now.Spec, m.spec) {
		return nil // its answer was lost
	}
	return err
}

// leaveOld lets go of the VM, or of what it has left of this host's datastores.
func (a *Agent) leaveOld(ctx context.Context, v *vm, m *moving) {
	undo, done := undoing(ctx)
	defer done()
	// A loop that has ended holds nothing.
	_ = v.do(undo, func(ctx context.Context) error {
		stored, err := a.Store.VM(ctx, string(v.id))
		if err != nil {
			return err
		}
		v.mu.Lock()
		v.stored.Spec, v.stored.Run = stored.Spec, stored.Run
		v.mu.Unlock()
		v.gone = stored.Run.Owner != a.Host()
		return nil
	})
	stays := datastores(m.spec)
	for _, id := range datastores(m.vm.Spec) {
		if ds := a.stores[id]; ds != nil && !slices.Contains(stays, id) {
			if err := ds.Forget(v.id); err != nil {
				a.Log.LogAttrs(ctx, slog.LevelDebug, "old lock records stay", slog.Any("err", err))
			}
		}
	}
}

// reconcile begins loops of VMs that are this host's, and ends those of VMs that are not. It reads those that it was told of, and
// returns which are to be looked at again, since their last loop has not ended, or their migration is not over.
func (a *Agent) reconcile(ctx context.Context, told news) (again map[string]bool, err error) {
	again = map[string]bool{}
	changed, err := a.readChanged(ctx, told)
	if err != nil {
		return again, err
	}
	for _, vm := range changed {
		mine := vm.Run.Owner == a.Host() && vm.Run.Heir.IsZero()
		switch v := a.lookup(vm.ID); {
		case v == nil && mine:
			if err := a.takeIn(ctx, vm.ID); err != nil {
				return again, err
			}
			if a.lookup(vm.ID) == nil {
				again[string(vm.ID)] = true
			}
		case v != nil && mine:
			if a.giveBack(ctx, v, vm) {
				again[string(vm.ID)] = true
			}
		case v != nil && !mine && vm.Run.Owner != a.Host():
			a.letGo(ctx, v)
			if a.lookup(vm.ID) != nil {
				again[string(vm.ID)] = true
			}
		}
	}
	return again, a.orphanedMoves(ctx)
}

// readChanged reads the VMs that may have changed; one that is gone is left out.
func (a *Agent) readChanged(ctx context.Context, told news) ([]inventory.VM, error) {
	if told.all || len(told.ids) > readEachMax {
		return a.Store.VMs(ctx)
	}
	var changed []inventory.VM
	for id := range told.ids {
		vm, err := a.Store.VM(ctx, id)
		switch {
		case err == nil:
			changed = append(changed, vm)
		case !fault.Is(err, fault.NotFound):
			return nil, err
		}
	}
	return changed, nil
}

// takeIn begins the loop of a VM that has become this host's: one that is off, or that the leader gave to this host to be started.
func (a *Agent) takeIn(ctx context.Context, id inventory.VMID) error {
	stored, err := a.Store.VM(ctx, string(id))
	if err != nil {
		return err
	}
	if r, ok := a.reassigned(stored); ok {
		if _, err := os.Stat(string(a.runDirOf(id))); err == nil {
			return nil // a QEMU that does not answer yet: adoptLater has it
		}
		stored.Status = inventory.VMStatus{State: inventory.Crashed, Host: a.Host(), Since: time.Now(), Detail: r.why}
		a.begin(ctx, stored, func(v *vm) { v.revival = r })
		return nil
	}
	if stored.Run.Owner != a.Host() || !stored.Run.Heir.IsZero() || stored.Run.Wanted != inventory.PowerOff {
		return nil
	}
	if active, err := a.Store.ActiveMigration(ctx, id); err != nil || active != "" {
		return err
	}
	stored.Status = inventory.VMStatus{State: inventory.Stopped, Host: a.Host(), Since: time.Now()}
	v := a.begin(ctx, stored, nil)
	// It may have been destroyed between the look and the loop.
	if _, err := a.Store.VM(ctx, string(id)); fault.Is(err, fault.NotFound) {
		return v.do(ctx, func(context.Context) error { v.gone = true; return nil })
	}
	return nil
}

// letGo ends the loop of a VM that is another host's. What still runs of it here was taken away by the leader, since its migrations have ended: it
// has no right to run any more.
func (a *Agent) letGo(ctx context.Context, v *vm) {
	// A loop that has ended is what is wanted.
	_ = v.do(ctx, func(ctx context.Context) error {
		if v.source != nil || v.target != nil {
			return nil
		}
		stored, err := a.Store.VM(ctx, string(v.id))
		if err != nil {
			return err
		}
		if stored.Run.Owner == a.Host() || stored.Run.Heir.Host == a.Host() {
			return nil
		}
		if v.process != nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "ending a copy that belongs elsewhere", slog.String("owner", string(stored.Run.Owner)))
			if err := v.process.Kill(ctx); err != nil {
				v.log.LogAttrs(ctx, slog.LevelError, "it does not end", slog.Any("err", err))
				return err
			}
			v.cleanUp(ctx)
		}
		v.gone = true
		return nil
	})
}
