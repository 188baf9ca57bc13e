package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
)

// CreateVM is what a user asks for; files name their datastore by name or id, or leave it out for the host's first one.
type CreateVM struct {
	Name     string
	CPUs     int
	Memory   inventory.Bytes
	CPUModel string // empty: the best that every host of the cluster can run
	Boot     inventory.Boot
	Disks    []CreateDisk
	NICs     []inventory.NIC
	Display  bool // a screen that VNC shows

	Image     inventory.File  // disk0 becomes a clone of it; zero: none
	Full      bool            // copy the image instead of a thin clone
	Size      inventory.Bytes // of that clone; 0: the image's
	Seed      *inventory.Seed // nil: no cloud-init seed
	Datastore string          // of the disks that are made; empty: the image's, or the host's first
	Start     bool            // once it is made; a VM that does not start is not made
}

// CreateDisk is an existing image, or with a Size one to make.
type CreateDisk struct {
	Datastore string
	Path      string
	Size      inventory.Bytes
	Format    inventory.DiskFormat // empty: qcow2

	clone inventory.File // the image that it becomes a clone of
	full  bool
}

// Create makes a VM on this host, stopped. Images that it made are removed again when a later step fails.
func (a *Agent) Create(ctx context.Context, want CreateVM) (inventory.VM, error) {
	var vm inventory.VM
	id := inventory.NewVMID()
	err := a.tasks.Run(ctx, "vm.create", string(id), want.Name, func(ctx context.Context, t *task.Task) (err error) {
		vm, err = a.create(ctx, id, want)
		t.Result(string(vm.ID))
		return fault.Wrap("create", "vm "+want.Name, err)
	})
	return vm, err
}

func (a *Agent) create(ctx context.Context, id inventory.VMID, want CreateVM) (vm inventory.VM, err error) {
	if err := inventory.CheckName("vm", want.Name); err != nil {
		return vm, err
	}
	// The store has the last word; asking first spares making disks for a name that is taken.
	if found, err := a.Store.VM(ctx, want.Name); err == nil {
		if task.TakenOver(ctx) && found.Spec.Request == task.Key(ctx) {
			return found, nil // an execution of this request that ended midway made it
		}
		return vm, fault.New(fault.Exists, "there is one of that name: see godwit vm ls")
	} else if !fault.Is(err, fault.NotFound) {
		return vm, err
	}
	if want, err = a.withImage(want); err != nil {
		return vm, err
	}
	spec, err := a.spec(ctx, want)
	if err != nil {
		return vm, err
	}
	self, err := a.describe(ctx)
	if err != nil {
		return vm, err
	}
	if err := fault.Refuse(fault.Invalid, spec.Problems()); err != nil {
		return vm, err
	}
	if err := a.haveNetworks(ctx, spec); err != nil {
		return vm, err
	}
	if err := a.freeMACs(ctx, want, &spec); err != nil {
		return vm, err
	}
	// What only a start needs, such as free memory, is asked then; the rest of the list would never come true.
	free := self
	free.Status.MemoryFree = self.Spec.Memory
	if err := fault.Refuse(fault.Incompatible, admission.Create(spec, free)); err != nil {
		return vm, err
	}
	vm = inventory.VM{
		ID: id, Spec: spec,
		Run:    inventory.VMRun{Owner: a.Host(), Wanted: inventory.PowerOff},
		Status: inventory.VMStatus{State: inventory.Stopped, Host: a.Host(), Since: time.Now()},
	}
	op, asked := newOp(), false
	defer func() {
		if !asked || !unknown(err) { // else the transaction may yet be done: the next start of the agent settles it
			a.settleClaim(ctx, op)
		}
	}()
	if err := a.intend(ctx, want, &vm.Spec); err != nil {
		return vm, err
	}
	if err := a.claimDisks(op, want, vm); err != nil {
		return vm, err
	}
	if err := a.images(ctx, op, want, &vm); err != nil {
		return vm, err
	}
	undoVars, err := a.makeVars(ctx, &vm.Spec)
	defer func() {
		if err != nil {
			err = errors.Join(err, undoVars())
		}
	}()
	if err != nil {
		return vm, err
	}
	asked = true
	drawn := slices.Clone(vm.Spec.NICs)
	if err := a.record(ctx, want, &vm); err != nil {
		return vm, err
	}
	asked = false
	if !slices.Equal(drawn, vm.Spec.NICs) { // the seed names them by their MAC addresses
		if err := a.rewriteSeed(want, vm); err != nil {
			return vm, errors.Join(err, a.writer.DeleteVM(context.WithoutCancel(ctx), vm.ID, nil))
		}
	}
	if err := a.stillThere(ctx, vm); err != nil {
		return vm, err
	}
	a.begin(ctx, vm, nil)
	if want.Start {
		return a.startNew(ctx, vm)
	}
	return vm, nil
}

// spec turns the request into a record: ids for names, defaults for what was left out.
func (a *Agent) spec(ctx context.Context, want CreateVM) (inventory.VMSpec, error) {
	spec := inventory.VMSpec{
		Name: want.Name, UUID: inventory.NewUUID(), CPUs: want.CPUs, Memory: want.Memory, Machine: a.abilities.Machine(),
		CPUModel: want.CPUModel, Boot: want.Boot, Created: time.Now(),
		Layout: inventory.LayoutNew, Display: want.Display, Request: task.Key(ctx),
	}
	spec.Boot.Vars = inventory.File{} // they are made, never chosen
	var bad []string
	kind := fault.NotFound // as long as nothing worse is wrong
	refuse := func(err error) {
		bad = append(bad, err.Error())
		if !fault.Is(err, fault.NotFound) {
			kind = fault.Invalid
		}
	}
	resolve := func(f *inventory.File) {
		if f.Path == "" {
			*f = inventory.File{}
			return
		}
		ds, err := a.datastore(string(f.Datastore))
		if err != nil {
			refuse(err)
			return
		}
		f.Datastore = ds.ID
		if path, err := ds.Resolve(f.Path); err != nil {
			refuse(err)
		} else if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			refuse(fault.New(fault.NotFound, "no file %s on datastore %s: copy it to %s", f.Path, ds.Name, path))
		}
	}
	resolve(&spec.Boot.Kernel)
	resolve(&spec.Boot.Initrd)
	resolve(&spec.Boot.Firmware)
	for i, d := range want.Disks {
		ds, err := a.datastore(d.Datastore)
		if err != nil {
			refuse(err)
			continue
		}
		name := fmt.Sprintf("disk%d", i)
		disk := inventory.Disk{Name: name, File: inventory.File{Datastore: ds.ID, Path: d.Path}, Format: d.Format, Size: d.Size}
		if disk.Format == "" {
			disk.Format = inventory.Qcow2
		}
		if disk.File.Path == "" {
			disk.File.Path = want.Name + "-" + name + "." + string(disk.Format)
		}
		spec.Disks = append(spec.Disks, disk)
	}
	for i, n := range want.NICs {
		n.Name = fmt.Sprintf("nic%d", i)
		if n.MAC == "" {
			n.MAC = inventory.NewMAC()
		}
		spec.NICs = append(spec.NICs, n)
	}
	if err := fault.Refuse(kind, bad); err != nil {
		return spec, err
	}
	if spec.CPUModel == "" {
		hosts, err := a.Store.Hosts(ctx)
		if err != nil {
			return spec, err
		}
		spec.CPUModel = admission.Baseline(hosts)
		if spec.CPUModel == "" {
			return spec, fault.New(fault.Incompatible, "no CPU model can be run by every host: name one with --cpu-model (see godwit host info)")
		}
	}
	return spec, nil
}

// datastore finds one of this host's datastores by name or id; an empty name means the first.
func (a *Agent) datastore(nameOrID string) (*datastore.Datastore, error) {
	var names []string
	for _, m := range a.Datastores {
		for _, ds := range a.stores {
			if ds.Path != m.Path {
				continue
			}
			if nameOrID == "" || nameOrID == ds.Name || nameOrID == string(ds.ID) {
				return ds, nil
			}
			names = append(names, ds.Name)
		}
	}
	if len(names) == 0 {
		return nil, fault.New(fault.NotFound, "host %s has no datastore: add one with godwit datastore add", a.Host())
	}
	return nil, fault.New(fault.NotFound, "host %s has no datastore %q: it has %s", a.Host(), nameOrID, strings.Join(names, ", "))
}

// haveNetworks refuses NICs on networks that do not exist.
func (a *Agent) haveNetworks(ctx context.Context, spec inventory.VMSpec) error {
	if len(spec.NICs) == 0 {
		return nil
	}
	networks, err := a.Store.Networks(ctx)
	if err != nil {
		return err
	}
	a.remember(networks)
	var bad []string
	for _, n := range spec.NICs {
		if !slices.ContainsFunc(networks, func(k inventory.Network) bool { return k.ID == n.Network }) {
			bad = append(bad, fmt.Sprintf("no network %q: see godwit network ls, or make it with godwit network create %s", n.Network, n.Network))
		}
	}
	return fault.Refuse(fault.NotFound, bad)
}

// intend clears away what an execution of the same request that ended midway made of the images, and records which are made now: a file that
// was there before is in no such record, and is left alone.
func (a *Agent) intend(ctx context.Context, want CreateVM, spec *inventory.VMSpec) error {
	var fresh []string
	for i, d := range spec.Disks {
		path, err := a.file(d.File)
		if err != nil || i < len(want.Disks) && want.Disks[i].Size == 0 && want.Disks[i].clone.IsZero() {
			continue // said below
		}
		name := string(d.File.Datastore) + "/" + d.File.Path // hosts may mount it elsewhere
		if task.Intended(ctx, name) {
			if other, err := a.usedBy(ctx, d.File); err != nil {
				return err
			} else if other == "" {
				if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fault.New(fault.Internal, "image of an earlier try: %w", err)
				}
			}
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			fresh = append(fresh, name)
		}
	}
	return task.Intend(ctx, fresh...)
}

// usedBy names the VM that has the image as a disk already.
func (a *Agent) usedBy(ctx context.Context, f inventory.File) (string, error) {
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return "", err
	}
	for _, vm := range all {
		for _, d := range vm.Spec.Disks {
			if d.File == f {
				return vm.Spec.Name, nil
			}
		}
	}
	return "", nil
}
