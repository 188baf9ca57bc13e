package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
	"github.com/godwit-vm/godwit/internal/wire"
)

// Devices of a running VM change in this order (docs/decisions/0012): what comes is written into the spec first and plugged in then,
// what goes is unplugged first and taken out of the spec then. So whenever an agent is killed in between, the spec has a device that
// QEMU has not, never the other way round, and the next agent plugs it in (mend), which needs nobody's consent. A plug that
// fails takes the device out of the spec again.

// newOp returns a name for an operation that claims files.
func newOp() string { return "op-" + strings.ToLower(rand.Text()[:12]) }

// errTemplate refuses what a template cannot do.
var errTemplate = fault.New(fault.Conflict, "it is a template: make a VM of it with godwit vm clone, or take that back with godwit vm template --undo")

// errTemplateFixed refuses to change one.
var errTemplateFixed = fault.New(fault.Conflict, "it is a template, which does not change: take that back with godwit vm template --undo first")

// AddDisk gives a VM a disk: an existing image, or with a size one that is made. A running VM gets it at once, in a hot-plug port. The
// caller's errors: fault.Invalid with every reason, fault.Conflict when the VM's state forbids it, fault.NoResources without a free place.
func (a *Agent) AddDisk(ctx context.Context, id inventory.VMID, want CreateDisk) (inventory.VM, error) {
	return a.device(ctx, "vm.disk.add", "add a disk to", id, func(ctx context.Context, v *vm) error { return v.addDisk(ctx, want) })
}

// RemoveDisk takes a disk from a VM, and with delete removes its image. The guest of a running VM has to let go of it within
// qemu.UnplugMax, else that is fault.Unavailable and the disk stays; a guest that lets go later is heard.
func (a *Agent) RemoveDisk(ctx context.Context, id inventory.VMID, name string, remove bool) (inventory.VM, error) {
	return a.device(ctx, "vm.disk.rm", "take a disk from", id, func(ctx context.Context, v *vm) error { return v.removeDisk(ctx, name, remove) })
}

// GrowDisk makes a disk larger; a running guest is told. A disk never shrinks: fault.Invalid. Growing it to the size that it has
// does nothing.
func (a *Agent) GrowDisk(ctx context.Context, id inventory.VMID, name string, size inventory.Bytes) (inventory.VM, error) {
	return a.device(ctx, "vm.disk.grow", "grow a disk of", id, func(ctx context.Context, v *vm) error { return v.growDisk(ctx, name, size) })
}

// AddNIC gives a VM a card on a network, as AddDisk a disk.
func (a *Agent) AddNIC(ctx context.Context, id inventory.VMID, want inventory.NIC) (inventory.VM, error) {
	return a.device(ctx, "vm.nic.add", "add a nic to", id, func(ctx context.Context, v *vm) error { return v.addNIC(ctx, want) })
}

// RemoveNIC takes a card from a VM, as RemoveDisk a disk.
func (a *Agent) RemoveNIC(ctx context.Context, id inventory.VMID, name string) (inventory.VM, error) {
	return a.device(ctx, "vm.nic.rm", "take a nic from", id, func(ctx context.Context, v *vm) error { return v.removeNIC(ctx, name) })
}

// device runs a change of a VM's devices as a task in the VM's loop.
func (a *Agent) device(ctx context.Context, kind, op string, id inventory.VMID, f func(context.Context, *vm) error) (changed inventory.VM, err error) {
	v, err := a.own(id)
	if err != nil {
		return changed, fault.Wrap(op, "", err)
	}
	err = a.tasks.Run(ctx, kind, string(id), v.record().Spec.Name, func(ctx context.Context, _ *task.Task) error {
		changed, err = a.change(ctx, op, id, func(ctx context.Context, v *vm) error {
			if v.stored.Spec.Template {
				return errTemplateFixed
			}
			return f(ctx, v)
		})
		return err
	})
	return changed, err
}

// place finds a name and a place for one more device of the kind: a hot-plug port, from which it can be taken again while the VM
// runs, or for a VM that is off and has none free, a fixed slot.
func (v *vm) place(kind string, slots int, taken func(string) bool) (name string, port int, err error) {
	spec := v.stored.Spec
	number := 0
	for taken(fmt.Sprintf("%s%d", kind, number)) {
		number++
	}
	if spec.Layout >= inventory.LayoutPorts && number < slots+inventory.HotPortsMax {
		for port := 1; port <= inventory.HotPortsMax; port++ {
			if !slices.ContainsFunc(spec.Disks, func(d inventory.Disk) bool { return d.Port == port }) &&
				!slices.ContainsFunc(spec.NICs, func(n inventory.NIC) bool { return n.Port == port }) {
				return fmt.Sprintf("%s%d", kind, number), port, nil
			}
		}
	}
	switch {
	case v.process == nil && number < slots:
		return fmt.Sprintf("%s%d", kind, number), 0, nil
	case v.process == nil:
		return "", 0, fault.New(fault.NoResources, "it has no place left for a device: take one out first")
	case spec.Layout < inventory.LayoutPorts:
		return "", 0, fault.New(fault.Conflict, "it was made before VMs had ports to plug devices into: stop it, and it takes the device then")
	}
	return "", 0, fault.New(fault.NoResources, "its %d hot-plug ports are taken: unplug a device, or stop it first", inventory.HotPortsMax)
}

// commit writes a changed spec and keeps it.
func (v *vm) commit(ctx context.Context, change func(*inventory.VMSpec) error) error {
	var wanted inventory.VMSpec
	stored, err := v.agent.writer.UpdateVM(ctx, v.id, nil, func(vm *inventory.VM) error {
		if err := change(&vm.Spec); err != nil {
			return err
		}
		wanted = vm.Spec
		return fault.Refuse(fault.Invalid, vm.Spec.Problems())
	})
	if unknown(err) {
		// Now it is decided, and the store says how; without an answer the record that the loop has may be the old one until the
		// agent is started again.
		undo, done := undoing(ctx)
		defer done()
		if _, burnt := v.agent.burn(undo, v.id); burnt != nil {
			return err
		}
		var read error
		if stored, read = v.agent.Store.VM(undo, string(v.id)); read != nil {
			return err
		}
		if sameSpec(stored.Spec, wanted) {
			err = nil
		}
	} else if err != nil {
		return err
	}
	v.mu.Lock()
	v.stored.Spec, v.stored.Run = stored.Spec, stored.Run
	v.mu.Unlock()
	return err
}

// sameSpec compares two specs as the store keeps them: one that has just been made has a finer time.
func sameSpec(a, b inventory.VMSpec) bool { return proto.Equal(wire.VMSpec(a), wire.VMSpec(b)) }

// undoing returns a context in which a failed change is taken back, also when its caller is gone.
func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 2*storeTimeout)
}

func (v *vm) addDisk(ctx context.Context, want CreateDisk) (err error) {
	if err := v.must(inventory.Stopped, inventory.Running, inventory.Paused); err != nil {
		return err
	}
	a := v.agent
	name, port, err := v.place("disk", inventory.DisksMax, func(name string) bool {
		return slices.ContainsFunc(v.stored.Spec.Disks, func(d inventory.Disk) bool { return d.Name == name })
	})
	if err != nil {
		return err
	}
	ds, err := a.datastore(want.Datastore)
	if err != nil {
		return err
	}
	disk := inventory.Disk{Name: name, File: inventory.File{Datastore: ds.ID, Path: want.Path}, Format: want.Format, Size: want.Size, Port: port}
	if disk.Format == "" {
		disk.Format = inventory.Qcow2
	}
	if disk.File.Path == "" {
		disk.File.Path = v.stored.Spec.Name + "-" + name + "." + string(disk.Format)
	}
	planned := v.stored.Spec
	planned.Disks = append(slices.Clone(planned.Disks), disk)
	if err := fault.Refuse(fault.Invalid, planned.Problems()); err != nil {
		return err
	}
	p, err := a.place(disk.File)
	if err != nil {
		return err
	}
	path := p.path
	if want.Size > 0 {
		made, err := a.makeDisk(ctx, ds, v.id, disk)
		if err != nil {
			return err
		}
		defer func() { made(err) }()
	} else {
		if err := a.takeDisk(ctx, p, &disk); err != nil {
			return err
		}
	}
	if v.process != nil {
		if err := a.lockMore(v.stored, ds); err != nil {
			return err
		}
	}
	if err := v.commit(ctx, func(s *inventory.VMSpec) error { s.Disks = append(s.Disks, disk); return nil }); err != nil {
		return err
	}
	if v.process == nil {
		return nil
	}
	if err := v.process.PlugDisk(ctx, v.stored.Spec, len(v.stored.Spec.Disks)-1, path, a.abilities); err != nil {
		undo, done := undoing(ctx)
		defer done()
		return errors.Join(err, v.forgetDevice(undo, name))
	}
	return nil
}

// makeDisk makes a disk's image under a claim, and returns what ends the claim: with an error the image goes again.
func (a *Agent) makeDisk(ctx context.Context, ds *datastore.Datastore, id inventory.VMID, disk inventory.Disk) (end func(error), err error) {
	p, err := a.place(disk.File)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(p.path); err == nil { // before the claim, which must never name somebody else's file
		return nil, fault.New(fault.Exists, "there is a file %s already: choose another name", disk.File.Path)
	}
	op := newOp()
	if err := a.claim(ds, op, id, disk.File.Path); err != nil {
		return nil, err
	}
	end = func(err error) {
		if unknown(err) {
			undo, done := undoing(ctx)
			defer done()
			if _, err := a.burn(undo, id); err != nil {
				return // the next start of the agent settles it
			}
		}
		a.settleClaim(ctx, op)
	}
	if err := a.unlessTaken(p.folder.Create(ctx, p.path, disk.Format, disk.Size), op, disk.File); err != nil {
		end(err)
		return nil, err
	}
	return end, nil
}

// lockMore makes the VM's lock record on a datastore that it did not use before.
func (a *Agent) lockMore(vm inventory.VM, ds *datastore.Datastore) error {
	if slices.Contains(datastores(vm.Spec), ds.ID) {
		return nil
	}
	err := ds.Lock(vm.ID, vm.Run.Generation, a.Host())
	if fault.Is(err, fault.Exists) {
		records, readErr := ds.Locks(vm.ID)
		if readErr == nil && len(records) > 0 && records[len(records)-1].Host == a.Host() {
			return nil // of a disk that was there before
		}
	}
	return err
}

// forgetDevice takes a device out of the spec.
func (v *vm) forgetDevice(ctx context.Context, name string) error {
	return v.commit(ctx, func(s *inventory.VMSpec) error {
		s.Disks = slices.DeleteFunc(s.Disks, func(d inventory.Disk) bool { return d.Name == name })
		s.NICs = slices.DeleteFunc(s.NICs, func(n inventory.NIC) bool { return n.Name == name })
		return nil
	})
}

// unpluggable refuses to take a device out of a running VM that cannot be taken out.
func (v *vm) unpluggable(name string, port int) error {
	switch {
	case v.process == nil:
		return nil
	case port == 0:
		return fault.New(fault.Conflict, "%s was there when the VM was made and is not in a hot-plug port: stop the VM first", name)
	case v.stored.Status.State != inventory.Running:
		return fault.New(fault.Conflict, "it is %v, and its guest has to let go of %s: let it run first, or stop it", v.stored.Status.State, name)
	}
	return nil
}

func (v *vm) removeDisk(ctx context.Context, name string, remove bool) error {
	if err := v.must(inventory.Stopped, inventory.Running, inventory.Paused); err != nil {
		return err
	}
	disk, err := v.disk(name)
	if err != nil {
		return err
	}
	if err := v.unpluggable(name, disk.Port); err != nil {
		return err
	}
	a := v.agent
	if remove {
		if err := a.noClonesOf(ctx, []inventory.File{disk.File}); err != nil {
			return err
		}
		op := newOp()
		ds := a.stores[disk.File.Datastore]
		if ds == nil {
			return fault.New(fault.NotFound, "datastore %s is not mounted on %s", disk.File.Datastore, a.Host())
		}
		if err := a.claim(ds, op, v.id, disk.File.Path); err != nil {
			return err
		}
		defer a.settleClaim(ctx, op) // it goes unless the spec still has it
	}
	if v.process != nil {
		if err := v.process.UnplugDisk(ctx, disk); err != nil {
			return err
		}
	}
	return v.forgetDevice(ctx, name)
}

// disk finds a disk of the VM.
func (v *vm) disk(name string) (inventory.Disk, error) {
	var names []string
	for _, d := range v.stored.Spec.Disks {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	if len(names) == 0 {
		return inventory.Disk{}, fault.New(fault.NotFound, "no disk %q: it has none", name)
	}
	return inventory.Disk{}, fault.New(fault.NotFound, "no disk %q: it has %s", name, strings.Join(names, ", "))
}

// sector is what sizes of disks are multiples of.
const sector = 512

func (v *vm) growDisk(ctx context.Context, name string, size inventory.Bytes) error {
	if err := v.must(inventory.Stopped, inventory.Running, inventory.Paused); err != nil {
		return err
	}
	disk, err := v.disk(name)
	if err != nil {
		return err
	}
	p, err := v.agent.place(disk.File)
	if err != nil {
		return err
	}
	var now inventory.Bytes
	if v.process != nil {
		var open bool
		if now, open, err = v.process.QMP().BlockSize(ctx, qemu.DiskNode(disk)); err == nil && !open {
			err = fault.New(fault.Conflict, "QEMU does not have it open: stop the VM and try again")
		}
	} else {
		var found image.Image
		found, err = p.folder.Check(ctx, p.path, disk.Format)
		now = found.Virtual
	}
	if err != nil {
		return err
	}
	var bad []string
	if disk.ReadOnly {
		bad = append(bad, name+" is read-only")
	}
	if size%sector != 0 {
		bad = append(bad, fmt.Sprintf("a size of %d bytes is not a multiple of %d", size, sector))
	}
	if size < now {
		bad = append(bad, fmt.Sprintf("%s has %v, and a disk never shrinks: name a larger size", name, now))
	}
	if err := fault.Refuse(fault.Invalid, bad); err != nil {
		return err
	}
	switch {
	case size == now:
	case v.process != nil:
		err = v.process.QMP().BlockResize(ctx, qemu.DiskNode(disk), size)
	default:
		err = p.folder.Grow(ctx, p.path, disk.Format, size)
	}
	if err != nil {
		return fault.Wrap("grow", name, err)
	}
	return v.commit(ctx, func(s *inventory.VMSpec) error {
		for i := range s.Disks {
			if s.Disks[i].Name == name {
				s.Disks[i].Size = size
			}
		}
		return nil
	})
}

func (v *vm) addNIC(ctx context.Context, nic inventory.NIC) error {
	if err := v.must(inventory.Stopped, inventory.Running, inventory.Paused); err != nil {
		return err
	}
	a := v.agent
	var err error
	nic.Name, nic.Port, err = v.place("nic", inventory.NICsMax, func(name string) bool {
		return slices.ContainsFunc(v.stored.Spec.NICs, func(n inventory.NIC) bool { return n.Name == name })
	})
	if err != nil {
		return err
	}
	if err := a.freeMAC(ctx, &nic); err != nil {
		return err
	}
	planned := v.stored.Spec
	planned.NICs = append(slices.Clone(planned.NICs), nic)
	if err := fault.Refuse(fault.Invalid, planned.Problems()); err != nil {
		return err
	}
	if err := a.haveNetworks(ctx, planned); err != nil {
		return err
	}
	self, err := a.describe(ctx)
	if err != nil {
		return err
	}
	if err := fault.Refuse(fault.Incompatible, admission.Networks(planned, self)); err != nil {
		return err
	}
	if err := v.commit(ctx, func(s *inventory.VMSpec) error { s.NICs = append(s.NICs, nic); return nil }); err != nil {
		return err
	}
	if v.process == nil {
		return nil
	}
	if err := v.plugNIC(ctx, nic); err != nil {
		undo, done := undoing(ctx)
		defer done()
		return errors.Join(err, v.forgetDevice(undo, nic.Name))
	}
	return nil
}

// plugNIC makes a card's port and plugs the card in; the port goes again when that fails.
func (v *vm) plugNIC(ctx context.Context, nic inventory.NIC) error {
	outlet, err := v.outlet(ctx, nic)
	if err != nil {
		return err
	}
	if err := v.process.PlugNIC(ctx, nic, outlet, v.agent.abilities); err != nil {
		undo, done := undoing(ctx)
		defer done()
		return errors.Join(err, v.agent.removePort(undo, v.portID(nic)))
	}
	return nil
}

func (v *vm) removeNIC(ctx context.Context, name string) error {
	if err := v.must(inventory.Stopped, inventory.Running, inventory.Paused); err != nil {
		return err
	}
	nic, err := v.nic(name)
	if err != nil {
		return err
	}
	if err := v.unpluggable(name, nic.Port); err != nil {
		return err
	}
	if v.process != nil {
		if err := v.process.UnplugNIC(ctx, nic); err != nil {
			return err
		}
	}
	return v.dropNIC(ctx, nic)
}

// dropNIC takes a card that QEMU does not have any more out of switch and spec.
func (v *vm) dropNIC(ctx context.Context, nic inventory.NIC) error {
	if v.process != nil {
		if err := v.agent.removePort(ctx, v.portID(nic)); err != nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "port not removed", slog.Any("err", err))
		}
	}
	return v.forgetDevice(ctx, nic.Name)
}

// nic finds a card of the VM.
func (v *vm) nic(name string) (inventory.NIC, error) {
	var names []string
	for _, n := range v.stored.Spec.NICs {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		return inventory.NIC{}, fault.New(fault.NotFound, "no nic %q: it has none", name)
	}
	return inventory.NIC{}, fault.New(fault.NotFound, "no nic %q: it has %s", name, strings.Join(names, ", "))
}
