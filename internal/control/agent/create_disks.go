package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/seed"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// undoMax bounds how long a VM that cannot be made may take to be unmade.
const undoMax = 30 * time.Second

// withImage turns the image that a VM shall be made from into a request for its first disk, and gives disks that are to be made their
// datastore.
func (a *Agent) withImage(want CreateVM) (CreateVM, error) {
	want.Disks = slices.Clone(want.Disks)
	for i := range want.Disks {
		if d := &want.Disks[i]; d.Size > 0 && d.Datastore == "" {
			d.Datastore = want.Datastore
		}
	}
	var bad []string
	if want.Seed != nil {
		bad = seed.Problems(*want.Seed)
	}
	if want.Image.Path == "" {
		if want.Size != 0 || want.Full {
			bad = append(bad, "a size and a full copy are of an image, and none is named: name one with --image, or give the size to --disk")
		}
		return want, fault.Refuse(fault.Invalid, bad)
	}
	if want.Size < 0 {
		bad = append(bad, fmt.Sprintf("a size of %d bytes is not possible", int64(want.Size)))
	}
	if err := fault.Refuse(fault.Invalid, bad); err != nil {
		return want, err
	}
	original, err := a.place(want.Image)
	if err != nil {
		return want, err
	}
	disk := CreateDisk{Datastore: want.Datastore, Size: want.Size, clone: original.file, full: want.Full}
	if disk.Datastore == "" {
		disk.Datastore = string(original.file.Datastore)
	}
	want.Disks = slices.Insert(want.Disks, 0, disk)
	return want, nil
}

// claimDisks claims the files that are to be made for a VM, and refuses those that are there, which a claim must never name.
func (a *Agent) claimDisks(op string, want CreateVM, vm inventory.VM) error {
	var files []inventory.File
	for i, d := range vm.Spec.Disks {
		if asked := want.Disks[i]; asked.Size > 0 || !asked.clone.IsZero() {
			files = append(files, d.File)
		}
	}
	if want.Seed != nil {
		p, err := a.seedPlace(want, vm)
		if err != nil {
			return err
		}
		files = append(files, p.file)
	}
	var claimed []copied
	for _, f := range files {
		p, err := a.place(f)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(p.path); err == nil {
			return fault.New(fault.Exists, "there is a file %s already: choose another name, or remove it", p)
		}
		claimed = append(claimed, copied{to: f})
	}
	return a.claimFiles(op, vm.ID, claimed)
}

// images makes the disks and the seed that are to be made, and looks at the disks that are to be used. What it made is claimed by op.
func (a *Agent) images(ctx context.Context, op string, want CreateVM, vm *inventory.VM) error {
	for i := range vm.Spec.Disks {
		d := &vm.Spec.Disks[i]
		p, err := a.place(d.File)
		if err != nil {
			return fault.Wrap("disk", d.Name, err)
		}
		switch asked := want.Disks[i]; {
		case !asked.clone.IsZero():
			err = a.cloneDisk(ctx, p, asked)
		case asked.Size > 0:
			err = p.folder.Create(ctx, p.path, d.Format, d.Size)
		default:
			if err := a.takeDisk(ctx, p, d); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return a.unlessTaken(err, op, d.File)
		}
		found, err := p.folder.Info(p.path)
		if err != nil {
			return err
		}
		if found.Virtual > 0 { // else a raw image that is not called so
			d.Size = found.Virtual
		}
	}
	if want.Seed == nil {
		return nil
	}
	return a.makeSeed(op, want, vm)
}

// cloneDisk makes a VM's first disk of an image. A full copy is long enough to be a task of its own.
func (a *Agent) cloneDisk(ctx context.Context, p place, asked CreateDisk) error {
	if !asked.full {
		return a.makeClone(ctx, p, asked.clone, false, inventory.Qcow2, asked.Size, nil)
	}
	return a.tasks.Run(ctx, "image.clone", p.object(), p.String(), func(ctx context.Context, t *task.Task) error {
		return a.makeClone(ctx, p, asked.clone, true, inventory.Qcow2, asked.Size, progress(t))
	})
}

// takeDisk looks at an existing image that a VM shall have, and refuses one that others need.
func (a *Agent) takeDisk(ctx context.Context, p place, d *inventory.Disk) error {
	found, err := p.folder.Check(ctx, p.path, d.Format)
	if err != nil {
		return err
	}
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return err
	}
	var bad []string
	for _, u := range a.holders(p.file, p.path, vms) {
		bad = append(bad, fmt.Sprintf("image %s belongs to vm %s: copy it first", d.File.Path, u.vm.Spec.Name))
	}
	clones, err := a.clones(ctx, p, vms)
	if err != nil {
		return err
	}
	for _, reason := range clones {
		bad = append(bad, fmt.Sprintf("image %s: %s, or make a clone too, with --image", d.File.Path, reason))
	}
	d.Size = found.Virtual
	return fault.Refuse(fault.Conflict, bad)
}

// seedPlace is where a VM's seed goes: beside its first disk.
func (a *Agent) seedPlace(want CreateVM, vm inventory.VM) (place, error) {
	in := inventory.DatastoreID(want.Datastore)
	if len(vm.Spec.Disks) > 0 {
		in = vm.Spec.Disks[0].File.Datastore
	}
	return a.place(inventory.File{Datastore: in, Path: vm.Spec.Name + "-seed.iso"})
}

// makeSeed writes the VM's cloud-init seed, for QEMU's user alone, and gives it to the VM.
func (a *Agent) makeSeed(op string, want CreateVM, vm *inventory.VM) error {
	p, err := a.seedPlace(want, *vm)
	if err != nil {
		return err
	}
	iso, err := seed.Build(seed.Config{Instance: vm.ID, VM: vm.Spec.Name, Seed: *want.Seed, NICs: vm.Spec.NICs, Workspace: a.RunDir})
	if err != nil {
		return err
	}
	vm.Spec.Disks = append(vm.Spec.Disks, inventory.Disk{
		Name: inventory.SeedDisk, File: p.file, Format: inventory.Raw, Size: inventory.Bytes(len(iso)), ReadOnly: true,
	})
	return a.unlessTaken(p.folder.Write(p.path, iso), op, p.file)
}

// rewriteSeed writes the seed of a VM anew that has not been started yet.
func (a *Agent) rewriteSeed(want CreateVM, vm inventory.VM) error {
	if want.Seed == nil {
		return nil
	}
	p, err := a.seedPlace(want, vm)
	if err != nil {
		return err
	}
	iso, err := seed.Build(seed.Config{Instance: vm.ID, VM: vm.Spec.Name, Seed: *want.Seed, NICs: vm.Spec.NICs, Workspace: a.RunDir})
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(p.path), p.folder.Write(p.path, iso))
}

// stillThere looks once more for the disks of a VM whose record has just been written, and takes the record back if one is gone: whoever removes an
// image looks for VMs that have it after it has hidden it (image.Remove), so one of the two notices.
func (a *Agent) stillThere(ctx context.Context, vm inventory.VM) error {
	for _, d := range vm.Spec.Disks {
		path, err := a.file(d.File)
		if err == nil {
			_, err = os.Lstat(path)
		}
		if err == nil {
			continue
		}
		err = fault.New(fault.Conflict, "image %s was removed meanwhile: %w", d.File.Path, err)
		undo, done := context.WithTimeout(context.WithoutCancel(ctx), undoMax)
		defer done()
		return errors.Join(err, a.writer.DeleteVM(undo, vm.ID, nil))
	}
	return nil
}

// startNew starts a VM that has just been made. One that does not start is taken out of the inventory again; its caller removes its images.
func (a *Agent) startNew(ctx context.Context, vm inventory.VM) (inventory.VM, error) {
	started, err := a.Start(ctx, vm.ID)
	if err == nil {
		return started, nil
	}
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), undoMax)
	defer done()
	return vm, errors.Join(err, a.Destroy(undo, vm.ID, false))
}

// goesWith lists the images that go with a VM: its seed always, its disks on request.
func goesWith(spec inventory.VMSpec, disks bool) []inventory.File {
	var files []inventory.File
	for _, d := range spec.Disks {
		if disks || d.Name == inventory.SeedDisk {
			files = append(files, d.File)
		}
	}
	return files
}

// mayGo refuses to destroy a VM with images that others need, with all reasons. A read-only disk that another VM has just stays.
func (a *Agent) mayGo(ctx context.Context, vm inventory.VM, disks bool) error {
	var bad []string
	for _, f := range goesWith(vm.Spec, disks) {
		p, err := a.place(f)
		if err != nil {
			continue // what is not there needs not go
		}
		clones, err := a.clones(ctx, p, nil)
		if err != nil {
			return err
		}
		for _, reason := range clones {
			bad = append(bad, fmt.Sprintf("image %s: %s, or leave --delete-disks out", p, reason))
		}
	}
	return fault.Refuse(fault.Conflict, bad)
}

// removeImagesOf removes the images that go with a VM that is destroyed. One that is not there is no error.
func (a *Agent) removeImagesOf(ctx context.Context, vm inventory.VM, disks bool) error {
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, f := range goesWith(vm.Spec, disks) {
		p, err := a.place(f)
		if err == nil && slices.ContainsFunc(a.holders(p.file, p.path, vms), func(u holder) bool { return u.vm.ID != vm.ID }) {
			continue
		}
		if err == nil {
			err = a.removeImage(ctx, p, vm.ID)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			all = errors.Join(all, fault.Wrap("delete", f.Path, err))
		}
	}
	return all
}
