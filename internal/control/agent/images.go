package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// ImageSource is where an imported image comes from.
type ImageSource = image.Source

// place is where an image is or will be.
type place struct {
	store  *datastore.Datastore
	folder image.Folder
	file   inventory.File
	path   string // absolute, all symbolic links resolved
}

// String names the place as the command line does.
func (p place) String() string { return p.file.Path + "@" + p.store.Name }

// object is the place as tasks name it.
func (p place) object() string { return string(p.file.Datastore) + "/" + p.file.Path }

// place finds a file, whose datastore is named by name or id, or is the host's first. The file need not exist.
func (a *Agent) place(f inventory.File) (place, error) {
	ds, err := a.datastore(string(f.Datastore))
	if err != nil {
		return place{}, err
	}
	p := place{store: ds, file: inventory.File{Datastore: ds.ID, Path: f.Path}}
	if err := inventory.CheckImagePath(f.Path); err != nil {
		return p, err
	}
	if p.folder, err = a.folder(ds); err != nil {
		return p, err
	}
	p.path, err = ds.Resolve(f.Path)
	return p, err
}

// folder returns the images of a datastore, once it is sure that this is still mounted.
func (a *Agent) folder(ds *datastore.Datastore) (image.Folder, error) {
	if err := ds.Check(); err != nil {
		return image.Folder{}, err
	}
	root, err := filepath.EvalSymlinks(ds.Path)
	if err != nil {
		return image.Folder{}, fault.New(fault.Unavailable, "datastore %s: %w", ds.Name, err)
	}
	return image.Folder{Root: root, Host: a.Host(), Owner: (*image.Owner)(a.User)}, nil
}

// sweepImages sees to what an agent of this host that was killed has left half done on its datastores. One that cannot be swept now is
// swept at the next start.
func (a *Agent) sweepImages(ctx context.Context) {
	for _, ds := range a.stores {
		folder, err := a.folder(ds)
		var swept []string
		if err == nil {
			swept, err = folder.Sweep(ctx)
		}
		if err != nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "datastore not swept", slog.String("datastore", ds.Name), slog.Any("err", err))
		}
		if len(swept) > 0 {
			a.Log.LogAttrs(ctx, slog.LevelInfo, "datastore swept", slog.String("datastore", ds.Name), slog.Any("files", swept))
		}
	}
}

// HostOf returns a host that has mounted the datastore of that name or id: this one if it has, else one that answers.
func (a *Agent) HostOf(ctx context.Context, nameOrID string) (inventory.HostID, error) {
	_, missing := a.datastore(nameOrID)
	if missing == nil || nameOrID == "" {
		return a.Host(), missing
	}
	all, err := a.Hosts(ctx)
	if err != nil {
		return "", err
	}
	var at, silent []inventory.HostID
	ids := map[inventory.DatastoreID]bool{}
	for _, h := range all {
		for _, m := range h.Spec.Datastores {
			if m.Name != nameOrID && string(m.ID) != nameOrID {
				continue
			}
			ids[m.ID] = true
			if h.Answers {
				at = append(at, h.ID)
			} else {
				silent = append(silent, h.ID)
			}
		}
	}
	switch {
	case len(ids) > 1:
		return "", fault.New(fault.Conflict, "%d datastores are called %s: name one by its id (see godwit datastore ls)", len(ids), nameOrID)
	case len(at) > 0:
		return at[0], nil
	case len(silent) > 0:
		return "", fault.New(fault.Unavailable, "no host that has datastore %s answers: %v", nameOrID, silent)
	}
	return "", fault.New(fault.NotFound, "no host has a datastore %q: see godwit datastore ls", nameOrID)
}

// Images lists the files of a datastore of this host, of all of them when none is named.
func (a *Agent) Images(ctx context.Context, nameOrID string) ([]inventory.Image, error) {
	var stores []*datastore.Datastore
	if nameOrID != "" {
		ds, err := a.datastore(nameOrID)
		if err != nil {
			return nil, err
		}
		stores = append(stores, ds)
	} else {
		for _, m := range a.Datastores {
			for _, ds := range a.stores {
				if ds.Path == m.Path {
					stores = append(stores, ds)
				}
			}
		}
	}
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var all []inventory.Image
	for _, ds := range stores {
		folder, err := a.folder(ds)
		if err != nil {
			return nil, err
		}
		found, err := folder.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, i := range found {
			all = append(all, a.view(ds, i, vms))
		}
	}
	return all, nil
}

// Image returns one file of a datastore.
func (a *Agent) Image(ctx context.Context, f inventory.File) (inventory.Image, error) {
	p, err := a.place(f)
	if err != nil {
		return inventory.Image{}, err
	}
	return a.see(ctx, p)
}

// see looks at an image.
func (a *Agent) see(ctx context.Context, p place) (inventory.Image, error) {
	found, err := p.folder.Info(p.path)
	if err != nil {
		return inventory.Image{}, err
	}
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return inventory.Image{}, err
	}
	return a.view(p.store, found, vms), nil
}

// view adds what the inventory knows of an image to what its file says.
func (a *Agent) view(ds *datastore.Datastore, i image.Image, vms []inventory.VM) inventory.Image {
	view := inventory.Image{
		File: inventory.File{Datastore: ds.ID, Path: i.Path}, Datastore: ds.Name, Format: i.Format, Size: i.Virtual, Used: i.Actual, Changed: i.Changed,
	}
	if i.Backing != "" {
		view.Backing = inventory.File{Datastore: ds.ID, Path: i.Backing}
	}
	var names []string
	for _, u := range a.holders(view.File, filepath.Join(ds.Path, i.Path), vms) {
		if !slices.Contains(names, u.vm.Spec.Name) {
			names = append(names, u.vm.Spec.Name)
		}
		if u.disk != nil && view.Format == "" { // a raw image has no header to know it by
			view.Format, view.Size = u.disk.Format, u.disk.Size
		}
	}
	view.VM = strings.Join(names, ", ")
	return view
}

// holder is a VM that has a file.
type holder struct {
	vm   inventory.VM
	as   string          // disk0, kernel
	disk *inventory.Disk // nil for what it boots from
}

// holders finds the VMs that have a file.
func (a *Agent) holders(f inventory.File, path string, vms []inventory.VM) []holder {
	same := func(g inventory.File) bool {
		if g.Datastore != f.Datastore || g.Path == "" {
			return false
		}
		if g.Path == f.Path {
			return true
		}
		other, err := a.file(g) // the same by a symbolic link
		return err == nil && other == path
	}
	var all []holder
	for _, vm := range vms {
		for _, d := range vm.Spec.Disks {
			if same(d.File) {
				all = append(all, holder{vm, d.Name, &d})
			}
		}
		b := vm.Spec.Boot
		for _, file := range []struct {
			as   string
			file inventory.File
		}{{"the firmware", b.Firmware}, {"the kernel", b.Kernel}, {"the initrd", b.Initrd}, {"the UEFI variables", b.Vars}} {
			if same(file.file) {
				all = append(all, holder{vm, file.as, nil})
			}
		}
	}
	return all
}

// needed lists every reason why an image must stay as it is: VMs that have it, but for one that is going, and thin clones that stand on it.
// What to do with a VM that has it is the caller's to say.
func (a *Agent) needed(ctx context.Context, p place, but inventory.VMID, instead func(holder) string) ([]string, error) {
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var reasons []string
	for _, u := range a.holders(p.file, p.path, vms) {
		if u.vm.ID == but {
			continue
		}
		reasons = append(reasons, fmt.Sprintf("it is %s of vm %s, which is %v: %s", u.as, u.vm.Spec.Name, u.vm.Status.State, instead(u)))
	}
	clones, err := a.clones(ctx, p, vms)
	return append(reasons, clones...), err
}

// clones lists the thin clones that stand on an image, each as a reason not to write to it.
func (a *Agent) clones(ctx context.Context, p place, vms []inventory.VM) ([]string, error) {
	clones, err := p.folder.Clones(ctx, p.path)
	if err != nil {
		return nil, err
	}
	var reasons []string
	for _, path := range clones {
		whose := ""
		for _, u := range a.holders(inventory.File{Datastore: p.file.Datastore, Path: path}, filepath.Join(p.folder.Root, path), vms) {
			whose = fmt.Sprintf(" (%s of vm %s, which is %v)", u.as, u.vm.Spec.Name, u.vm.Status.State)
		}
		reasons = append(reasons, fmt.Sprintf("%s%s is a thin clone of it and reads from it: delete that first", path, whose))
	}
	return reasons, nil
}

// progress tells a task how far a copy is.
func progress(t *task.Task) image.Progress {
	return func(done, total inventory.Bytes, doing string) { t.Progress(int64(done), int64(total), doing) }
}

// change runs one change of an image as a task and returns the image as it is then.
func (a *Agent) changeImage(ctx context.Context, kind string, f inventory.File, change func(context.Context, place, *task.Task) error) (inventory.Image, error) {
	p, err := a.place(f)
	if err != nil {
		return inventory.Image{}, err
	}
	var after inventory.Image
	err = a.tasks.Run(ctx, kind, p.object(), p.String(), func(ctx context.Context, t *task.Task) error {
		if err := change(ctx, p, t); err != nil {
			return err
		}
		t.Result(p.object())
		var err error
		after, err = a.see(ctx, p)
		return err
	})
	return after, err
}

// CreateImage makes an empty image on a datastore of this host; an empty format is qcow2.
func (a *Agent) CreateImage(ctx context.Context, f inventory.File, format inventory.DiskFormat, size inventory.Bytes) (inventory.Image, error) {
	return a.changeImage(ctx, "image.create", f, func(ctx context.Context, p place, _ *task.Task) error {
		return p.folder.Create(ctx, p.path, orQcow2(format), size)
	})
}

// ImportImage brings an image in from a file of this host or from a URL; an empty format is qcow2.
func (a *Agent) ImportImage(ctx context.Context, f inventory.File, format inventory.DiskFormat, source ImageSource) (inventory.Image, error) {
	return a.changeImage(ctx, "image.import", f, func(ctx context.Context, p place, t *task.Task) error {
		return p.folder.Import(ctx, p.path, orQcow2(format), source, progress(t))
	})
}

// CloneImage makes a thin clone of an image, or with full a copy, which may be on another datastore of this host and have another format. A thin
// clone is refused while a VM may write to the image.
func (a *Agent) CloneImage(ctx context.Context, f, from inventory.File, full bool, format inventory.DiskFormat) (inventory.Image, error) {
	return a.changeImage(ctx, "image.clone", f, func(ctx context.Context, p place, t *task.Task) error {
		return a.makeClone(ctx, p, from, full, format, 0, progress(t))
	})
}

// makeClone makes a clone of the given size, 0 for the original's.
func (a *Agent) makeClone(ctx context.Context, p place, from inventory.File, full bool, format inventory.DiskFormat, size inventory.Bytes,
	tell image.Progress,
) error {
	original, found, err := a.original(ctx, from)
	if err != nil {
		return err
	}
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return err
	}
	writers := slices.DeleteFunc(a.holders(original.file, original.path, vms), func(u holder) bool { return u.disk == nil || u.disk.ReadOnly || u.vm.Spec.Template })
	var bad []string
	if full {
		for _, u := range writers {
			if u.vm.Status.State != inventory.Stopped && u.vm.Status.State != inventory.Crashed {
				bad = append(bad, fmt.Sprintf("%s is %s of vm %s, which is %v: stop it first", original, u.as, u.vm.Spec.Name, u.vm.Status.State))
			}
		}
		if err := fault.Refuse(fault.Conflict, bad); err != nil {
			return err
		}
		if format == "" {
			format = found
		}
		return p.folder.Copy(ctx, p.path, format, original.folder, original.path, found, size, tell)
	}
	if format != "" && format != inventory.Qcow2 {
		bad = append(bad, fmt.Sprintf("a thin clone is a qcow2 image and cannot be %s: take --full for a copy", format))
	}
	if original.file.Datastore != p.file.Datastore {
		bad = append(bad, fmt.Sprintf("a thin clone is on the datastore of its original, %s: take --full for a copy on %s", original.store.Name, p.store.Name))
	}
	if err := fault.Refuse(fault.Invalid, bad); err != nil {
		return err
	}
	for _, u := range writers {
		bad = append(bad, fmt.Sprintf("%s is %s of vm %s, which may write to it: take --full for a copy", original, u.as, u.vm.Spec.Name))
	}
	if err := fault.Refuse(fault.Conflict, bad); err != nil {
		return err
	}
	return p.folder.Clone(ctx, p.path, original.path, found, size)
}

// original finds an image to make a clone of, and its format.
func (a *Agent) original(ctx context.Context, f inventory.File) (place, inventory.DiskFormat, error) {
	p, err := a.place(f)
	if err != nil {
		return p, "", err
	}
	seen, err := a.see(ctx, p)
	if err != nil {
		return p, "", err
	}
	if seen.Format != inventory.Raw && seen.Format != inventory.Qcow2 {
		return p, "", fault.New(fault.Invalid, "%s is no qcow2 image, and raw ones are called .raw, .img or .iso: bring it in with godwit image import", p)
	}
	return p, seen.Format, nil
}

// GrowImage makes an image larger that no VM has and no clone stands on; disks of VMs are grown as such.
func (a *Agent) GrowImage(ctx context.Context, f inventory.File, size inventory.Bytes) (inventory.Image, error) {
	return a.changeImage(ctx, "image.grow", f, func(ctx context.Context, p place, _ *task.Task) error {
		p, format, err := a.original(ctx, p.file)
		if err != nil {
			return err
		}
		reasons, err := a.needed(ctx, p, "", func(u holder) string {
			if u.disk == nil || u.disk.ReadOnly {
				return "it has the size that it needs"
			}
			return fmt.Sprintf("grow it with godwit vm disk grow %s %s --size SIZE", u.vm.Spec.Name, u.as)
		})
		if err := errors.Join(err, fault.Refuse(fault.Conflict, reasons)); err != nil {
			return err
		}
		return p.folder.Grow(ctx, p.path, format, size)
	})
}

// DeleteImage removes a file of a datastore that no VM and no other image needs, or says who does.
func (a *Agent) DeleteImage(ctx context.Context, f inventory.File) error {
	p, err := a.place(f)
	if err != nil {
		return err
	}
	return a.tasks.Run(ctx, "image.delete", p.object(), p.String(), func(ctx context.Context, _ *task.Task) error {
		return a.removeImage(ctx, p, "")
	})
}

// removeImage removes a file unless somebody other than the VM that is going needs it.
func (a *Agent) removeImage(ctx context.Context, p place, but inventory.VMID) error {
	err := p.folder.Remove(ctx, p.path, func(ctx context.Context) error {
		reasons, err := a.needed(ctx, p, but, func(u holder) string {
			if u.disk == nil {
				return "destroy that first"
			}
			return "destroy that first, with --delete-disks if its disks shall go too"
		})
		return errors.Join(err, fault.Refuse(fault.Conflict, reasons))
	})
	return fault.Wrap("image", p.String(), err)
}

func orQcow2(format inventory.DiskFormat) inventory.DiskFormat {
	if format == "" {
		return inventory.Qcow2
	}
	return format
}
