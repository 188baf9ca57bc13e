package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/driver/seed"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// CloneVM is a request to make a VM like another one.
type CloneVM struct {
	Name      string
	Full      bool            // copy the disks even of a template
	Datastore string          // of the copies; empty: where the originals are
	Seed      *inventory.Seed // nil: the clone has a seed only if the original has, with the new name
}

// Clone makes a new VM on this host of a stopped VM, with copies of its disks, or of a template, with thin clones of them. It
// has an id, UUID and MAC addresses of its own. The original stays as it is and cannot start meanwhile. On an error nothing of the clone
// stays. Errors: a refusal with every reason; fault.Exists for a name that is taken.
func (a *Agent) Clone(ctx context.Context, id inventory.VMID, want CloneVM) (clone inventory.VM, err error) {
	v, err := a.own(id)
	if err != nil {
		return clone, err
	}
	name := v.record().Spec.Name
	err = a.tasks.Run(ctx, "vm.clone", string(id), name, func(ctx context.Context, t *task.Task) error {
		if found, err := a.Store.VM(ctx, want.Name); err == nil {
			if task.TakenOver(ctx) && found.Spec.Request == task.Key(ctx) {
				clone = found // an execution of this request that ended midway made it
				t.Result(string(clone.ID))
				return nil
			}
			return fault.New(fault.Exists, "there is a vm %s already: see godwit vm ls", want.Name)
		}
		clone, err = a.clone(ctx, v, want, t)
		if err == nil {
			t.Result(string(clone.ID))
		}
		return err
	})
	return clone, fault.Wrap("clone", "vm "+name, err)
}

// copied is one image of a clone.
type copied struct {
	disk     string // its name in the VM; empty: the UEFI variables
	from, to inventory.File
	format   inventory.DiskFormat
	thin     bool
}

func (a *Agent) clone(ctx context.Context, v *vm, want CloneVM, t *task.Task) (clone inventory.VM, err error) {
	release, err := v.hold(ctx, "it is being cloned to "+want.Name, true, func(vm inventory.VM) error {
		if state := vm.Status.State; state != inventory.Stopped {
			return fault.New(fault.Conflict, "it is %v, and only a stopped VM can be cloned: stop it first", state)
		}
		return nil
	})
	if err != nil {
		return clone, err
	}
	defer release()
	clone, copies, err := a.cloneOf(v.record(), want)
	if err != nil {
		return clone, err
	}
	clone.Spec.Request = task.Key(ctx)
	if err := a.admitCopies(copies, clone.Spec); err != nil {
		return clone, err
	}
	op := newOp()
	settled := false
	defer func() {
		if !unknown(err) || !settled { // else the transaction may yet be done: the next start of the agent settles it
			a.settleClaim(ctx, op)
		}
	}()
	if err := a.claimFiles(op, clone.ID, copies); err != nil {
		return clone, err
	}
	for i, c := range copies {
		what := fmt.Sprintf("%s (%d of %d)", c.to.Path, i+1, len(copies))
		t.Progress(int64(i)*100, int64(len(copies))*100, what)
		if c.disk == inventory.SeedDisk {
			if err := a.cloneSeed(op, c, v.record(), &clone, want.Seed); err != nil {
				return clone, err
			}
			continue
		}
		if err := a.cloneImage(ctx, op, c, func(done, total inventory.Bytes, _ string) {
			t.Progress(int64(i)*100+int64(done)*100/max(1, int64(total)), int64(len(copies))*100, what)
		}); err != nil {
			return clone, err
		}
	}
	if err := ctx.Err(); err != nil {
		return clone, fault.New(fault.Canceled, "%w", err)
	}
	settled = true
	if err := a.writer.CreateVM(ctx, clone); err != nil {
		return clone, err
	}
	a.begin(ctx, clone, nil)
	return clone, nil
}

// cloneOf plans the clone of a VM and the images that it needs.
func (a *Agent) cloneOf(vm inventory.VM, want CloneVM) (inventory.VM, []copied, error) {
	spec := vm.Spec
	spec.Name, spec.UUID, spec.Created, spec.Template, spec.Request = want.Name, inventory.NewUUID(), time.Now(), false, ""
	spec.Disks, spec.NICs = slices.Clone(spec.Disks), slices.Clone(spec.NICs)
	for i := range spec.NICs {
		spec.NICs[i].MAC = inventory.NewMAC()
	}
	thin := vm.Spec.Template && !want.Full
	var bad []string
	target := func(from inventory.File) inventory.DatastoreID {
		if want.Datastore == "" {
			return from.Datastore
		}
		ds, err := a.datastore(want.Datastore)
		if err != nil {
			bad = append(bad, err.Error())
			return ""
		}
		return ds.ID
	}
	var copies []copied
	for i := range spec.Disks {
		d := &spec.Disks[i]
		if d.ReadOnly && d.Name != inventory.SeedDisk {
			continue // such an image may be shared
		}
		c := copied{disk: d.Name, from: d.File, format: d.Format, thin: thin && d.Name != inventory.SeedDisk}
		c.to = inventory.File{Datastore: target(d.File), Path: want.Name + "-" + d.Name + "." + string(d.Format)}
		if c.thin {
			c.to.Path = want.Name + "-" + d.Name + "." + string(inventory.Qcow2)
			d.Format = inventory.Qcow2
			if c.to.Datastore != d.File.Datastore && c.to.Datastore != "" {
				bad = append(bad, fmt.Sprintf("%s: a thin clone cannot be on another datastore than its template's image: leave --datastore out, or say --full", d.Name))
			}
		}
		if d.Name == inventory.SeedDisk {
			c.to.Path = want.Name + "-seed.iso"
		}
		d.File = c.to
		copies = append(copies, c)
	}
	if want.Seed != nil {
		bad = append(bad, seed.Problems(*want.Seed)...)
		if len(spec.Disks) > 0 && !slices.ContainsFunc(spec.Disks, func(d inventory.Disk) bool { return d.Name == inventory.SeedDisk }) {
			from := vm.Spec.Disks[0].File // where the seed goes; nothing is read from it
			to := inventory.File{Datastore: target(from), Path: want.Name + "-seed.iso"}
			spec.Disks = append(spec.Disks, inventory.Disk{Name: inventory.SeedDisk, File: to, Format: inventory.Raw, ReadOnly: true})
			copies = append(copies, copied{disk: inventory.SeedDisk, from: from, to: to, format: inventory.Raw, thin: true})
		}
	}
	if vars := spec.Boot.Vars; !vars.IsZero() {
		spec.Boot.Vars = inventory.File{Datastore: target(vars), Path: want.Name + "-vars.fd"}
		copies = append(copies, copied{from: vars, to: spec.Boot.Vars, format: inventory.Raw})
	}
	slices.Sort(bad)
	bad = append(slices.Compact(bad), spec.Problems()...)
	clone := inventory.VM{
		ID: inventory.NewVMID(), Spec: spec, Run: inventory.VMRun{Owner: a.Host(), Wanted: inventory.PowerOff},
		Status: inventory.VMStatus{State: inventory.Stopped, Host: a.Host(), Since: time.Now()},
	}
	return clone, copies, fault.Refuse(fault.Invalid, bad)
}

// admitCopies lists everything that stands in the way of the copies: names that are taken, datastores that are not there or too full.
func (a *Agent) admitCopies(copies []copied, spec inventory.VMSpec) error {
	var bad []string
	need := map[inventory.DatastoreID]inventory.Bytes{}
	kind := fault.Invalid
	for _, c := range copies {
		ds, from := a.stores[c.to.Datastore], a.stores[c.from.Datastore]
		if ds == nil || from == nil {
			bad = append(bad, fmt.Sprintf("%s: its datastore is not mounted on %s: mount it and add it there", c.from.Path, a.Host()))
			continue
		}
		if _, err := ds.Stat(c.to.Path); err == nil {
			bad = append(bad, fmt.Sprintf("there is a file %s on datastore %s already: choose another name for the clone", c.to.Path, ds.Name))
			kind = fault.Exists
		}
		if path, err := from.Resolve(c.from.Path); err != nil {
			bad = append(bad, err.Error())
		} else if !c.thin {
			need[c.to.Datastore] += inventory.Bytes(taken(path))
		}
	}
	for id, bytes := range need {
		if free, _, err := a.stores[id].Space(); err == nil && free < bytes {
			bad = append(bad, fmt.Sprintf("datastore %s has %v free and the copies need %v: free some, or choose another with --datastore", a.stores[id].Name, free, bytes))
			kind = fault.NoResources
		}
	}
	for _, d := range spec.Devices {
		bad = append(bad, fmt.Sprintf("it holds device %s of host %s, which cannot be cloned: take the device out first", d.Address, d.Host))
	}
	return fault.Refuse(kind, bad)
}

// claimFiles claims what a clone is to have, on each datastore.
func (a *Agent) claimFiles(op string, vm inventory.VMID, copies []copied) error {
	byStore := map[inventory.DatastoreID][]string{}
	for _, c := range copies {
		byStore[c.to.Datastore] = append(byStore[c.to.Datastore], c.to.Path)
	}
	for id, paths := range byStore {
		if err := a.claim(a.stores[id], op, vm, paths...); err != nil {
			return err
		}
	}
	return nil
}

// cloneImage makes one image of a clone; it appears under its name whole or not at all.
func (a *Agent) cloneImage(ctx context.Context, op string, c copied, progress image.Progress) error {
	from, err := a.place(c.from)
	if err != nil {
		return err
	}
	to, err := a.place(c.to)
	if err != nil {
		return err
	}
	if c.thin {
		err = to.folder.Clone(ctx, to.path, from.path, c.format, 0)
	} else {
		err = to.folder.Copy(ctx, to.path, c.format, from.folder, from.path, c.format, 0, progress)
	}
	return a.unlessTaken(err, op, c.to)
}

// cloneSeed makes the seed of a clone: the one that is asked for, or one like the original's with the clone's name and NICs.
func (a *Agent) cloneSeed(op string, c copied, original inventory.VM, clone *inventory.VM, want *inventory.Seed) error {
	to, err := a.place(c.to)
	if err != nil {
		return err
	}
	config := seed.Config{Instance: clone.ID, VM: clone.Spec.Name, NICs: clone.Spec.NICs, Workspace: a.RunDir}
	var iso []byte
	if want != nil {
		config.Seed = *want
		iso, err = seed.Build(config)
	} else {
		var path string
		if path, err = a.file(c.from); err != nil {
			return err
		}
		if iso, err = os.ReadFile(path); err != nil {
			return fault.New(fault.Unavailable, "seed: %w", err)
		}
		iso, err = seed.Renew(iso, seed.Config{Instance: original.ID, VM: original.Spec.Name, NICs: original.Spec.NICs}, config)
	}
	if err != nil {
		return err
	}
	for i := range clone.Spec.Disks {
		if d := &clone.Spec.Disks[i]; d.Name == inventory.SeedDisk {
			d.Size = inventory.Bytes(len(iso))
		}
	}
	return a.unlessTaken(to.folder.Write(to.path, iso), op, c.to)
}

// SetTemplate makes a stopped VM a template, or a template a VM again; nothing happens to one that is so already. A template
// that VMs are thin clones of stays one: fault.Conflict names them all, since to run it would change what they stand on.
func (a *Agent) SetTemplate(ctx context.Context, id inventory.VMID, template bool) (changed inventory.VM, err error) {
	v, err := a.own(id)
	if err != nil {
		return changed, err
	}
	err = a.tasks.Run(ctx, "vm.template", string(id), v.record().Spec.Name, func(ctx context.Context, _ *task.Task) error {
		changed, err = a.change(ctx, "template", id, func(ctx context.Context, v *vm) error {
			if v.stored.Spec.Template == template {
				return nil
			}
			if err := v.must(inventory.Stopped); err != nil {
				return err
			}
			if !template {
				if err := a.noClones(ctx, v.stored); err != nil {
					return err
				}
			}
			return v.commit(ctx, func(s *inventory.VMSpec) error { s.Template = template; return nil })
		})
		return err
	})
	return changed, err
}

// noClones refuses what would change or remove the images of a template that others stand on.
func (a *Agent) noClones(ctx context.Context, vm inventory.VM) error {
	if !vm.Spec.Template {
		return nil // nobody can be a thin clone of what was never a template
	}
	return a.noClonesOf(ctx, files(vm.Spec))
}

// noClonesOf refuses while thin clones stand on one of the images.
func (a *Agent) noClonesOf(ctx context.Context, images []inventory.File) error {
	names, err := a.clonesOf(ctx, images)
	if err != nil || len(names) == 0 {
		return err
	}
	return fault.New(fault.Conflict, "its images are what thin clones stand on: destroy %s first", strings.Join(names, ", "))
}

// clonesOf names all VMs with a disk that is a thin clone of one of the images.
func (a *Agent) clonesOf(ctx context.Context, images []inventory.File) ([]string, error) {
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	bases := map[string]bool{}
	for _, f := range images {
		if path, err := a.file(f); err == nil {
			bases[path] = true
		}
	}
	var names []string
	for _, vm := range all {
		for _, d := range vm.Spec.Disks {
			if d.Format != inventory.Qcow2 || a.stores[d.File.Datastore] == nil {
				continue // a thin clone is on the datastore of its base
			}
			base, err := a.backing(d.File)
			if err != nil && !fault.Is(err, fault.NotFound) { // an image that is gone stands on nothing
				return nil, err
			}
			if bases[base] && !slices.Contains(names, vm.Spec.Name) {
				names = append(names, vm.Spec.Name)
			}
		}
	}
	return names, nil
}

// backing returns the absolute path of the image that the one at f is a thin clone of, empty when it is none.
func (a *Agent) backing(f inventory.File) (string, error) {
	p, err := a.place(f)
	if err != nil {
		return "", err
	}
	found, err := p.folder.Info(p.path)
	if err != nil || found.Backing == "" {
		return "", err
	}
	return filepath.Join(p.folder.Root, found.Backing), nil
}
