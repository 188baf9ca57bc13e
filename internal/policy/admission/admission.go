// Package admission says whether a VM may be where somebody wants it: Check for a running VM that is to move, Create for one
// that is to be created or started.
//
// Both return every reason against it at once, in a fixed order, each one line that says what is wrong and what to do; no
// reasons means yes. Facts come in as arguments: the package asks nobody and reserves nothing, so what it admits may
// still be refused by the host when two are admitted at once. What is not known about a host that does not exist or does not
// answer gives no reason beyond that. Callers wrap the reasons with fault.Refuse.
package admission

import (
	"fmt"
	"slices"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Overhead is the memory that a QEMU takes beside the guest's own. QEMU 10.0.2 with a 512 MiB Linux guest under TCG had 202–206 MiB
// of private memory when the guest had touched about 85 MiB of its own.
const Overhead = 128 * inventory.MiB

// Facts is all that Check looks at.
type Facts struct {
	VM     inventory.VM
	Source inventory.Host   // as it says of itself now; the VM's owner
	Asked  inventory.HostID // the target as it was asked for
	Target inventory.Host   // as it says of itself now; without an ID: no such host
	Silent string           // why the target does not answer; empty: it answers, and Target is fresh

	// Other is an unfinished migration of the VM, other than the one that is being admitted.
	Other inventory.MigrationID

	// Locks says for each datastore of the VM whether the target sees there the VM's lock record of the current generation, which
	// the source holds. It is the proof that both see the same file system: a marker file may have been copied. A datastore that
	// is missing here was not looked at, and counts as not seen.
	Locks map[inventory.DatastoreID]bool

	// SourceLacks and TargetLacks name the migration abilities of QEMU that Godwit needs and did not find there by name
	// ("return-path", "pause-before-switchover").
	SourceLacks []string
	TargetLacks []string
}

// reasons collects lines; its methods are the checks that Check and Create share.
type reasons struct {
	list []string
}

func (r *reasons) add(format string, args ...any) {
	if line := fmt.Sprintf(format, args...); !slices.Contains(r.list, line) {
		r.list = append(r.list, line)
	}
}

// Check returns every reason why the VM cannot move from Source to Target now; none means that it may. The order is that of
// the story: the request, the VM, both QEMUs, the target's memory, storage and networks.
func Check(f Facts) []string {
	r := &reasons{}
	known := f.request(r)
	f.vm(r)
	f.correctness(r, f.Source)
	f.abilities(r, f.Source.ID, f.SourceLacks)
	if !known {
		return r.list
	}
	f.correctness(r, f.Target)
	f.abilities(r, f.Target.ID, f.TargetLacks)
	if from, to := f.Source.Spec.QEMU.Accelerator, f.Target.Spec.QEMU.Accelerator; from != to {
		r.add("%s runs VMs with %s and %s with %s, and a running VM cannot change over: choose a target with %s, or stop the VM and start it there",
			f.Source.ID, from, f.Target.ID, to, from)
	}
	r.machine(f.VM.Spec, f.Target)
	r.uefi(f.VM.Spec, f.Target)
	f.flash(r)
	r.memory(f.VM.Spec, f.Target)
	f.storage(r)
	r.networks(f.VM.Spec, f.Target)
	return r.list
}

// request looks at who is asked for, and reports whether the target is known well enough to be looked at.
func (f Facts) request(r *reasons) bool {
	switch {
	case f.Target.ID == "":
		r.add("there is no host %q: see godwit host ls", string(f.Asked))
		return false
	case f.Target.ID == f.Source.ID:
		r.add("the VM is on %s already: choose another host", f.Source.ID)
		return false
	case f.Silent != "":
		r.add("%s does not answer (%s): see whether its agent runs and the network is up, or choose another host", f.Target.ID, f.Silent)
		return false
	}
	return true
}

// vm looks at the VM itself: only one that runs, that nobody else moves and that holds nothing of its host can move.
func (f Facts) vm(r *reasons) {
	name := f.VM.Spec.Name
	if run := f.VM.Run; run.Owner != f.Source.ID {
		r.add("%s belongs to host %q and not to %s: ask again", name, string(run.Owner), f.Source.ID)
	}
	switch f.VM.Status.State {
	case inventory.Running:
	case inventory.Migrating:
		if f.Other == "" && f.VM.Run.Heir.IsZero() {
			r.add("%s is migrating: wait for that to end, or cancel it", name)
		}
	case inventory.Paused:
		r.add("%s is paused: resume it first", name)
	case inventory.Starting:
		r.add("%s is still starting: ask again when it runs", name)
	case inventory.Unknown:
		r.add("%s's host does not answer, so nobody knows whether the VM runs: see godwit host ls", name)
	case inventory.Stopped, inventory.Crashed:
		r.add("%s is %v, and only a running VM migrates: start it first (godwit vm start %s)", name, f.VM.Status.State, name)
	}
	other := f.Other
	if other == "" {
		other = f.VM.Run.Heir.Migration
	}
	if other != "" || !f.VM.Run.Heir.IsZero() {
		r.add("migration %s of %s has not ended: wait for it, or cancel it (godwit migration cancel %s)", other, name, other)
	}
	for _, d := range f.VM.Spec.Devices {
		r.add("%s holds device %s of host %s, which cannot move with it: take the device out first", name, d.Address, d.Host)
	}
	if m := f.VM.Spec.CPUModel; m == "host" || m == "max" {
		r.add("%s has CPU model %s, which differs from host to host: create it with a named model to let it migrate", name, m)
	}
}

// correctness refuses a QEMU that is not proven to move memory whole. 7.2 under TCG loses pages of a busy guest without a word.
func (f Facts) correctness(r *reasons, h inventory.Host) {
	q := h.Spec.QEMU
	switch q.Migration.State {
	case inventory.VerdictGood:
	case inventory.VerdictBad:
		r.add("QEMU %s on %s loses guest memory in a migration (%s): install QEMU 8.2 or newer there (Debian: from the backports suite), then run godwit doctor",
			q.Version, h.ID, q.Migration.Detail)
	case inventory.VerdictUnknown:
		r.add("nobody has proven yet that QEMU %s on %s migrates correctly: run godwit doctor there", q.Version, h.ID)
	}
}

func (f Facts) abilities(r *reasons, host inventory.HostID, lacks []string) {
	for _, ability := range lacks {
		r.add("QEMU on %s cannot do %s, which the hand-over needs: install QEMU 8.2 or newer there", host, ability)
	}
}

// storage wants each datastore of the VM mounted on both sides, and to be one and the same.
func (f Facts) storage(r *reasons) {
	for _, id := range datastores(f.VM.Spec) {
		source, _ := mount(f.Source, id)
		name := source.Name
		if name == "" {
			name = string(id)
		}
		if source.ID != "" && !source.Shared {
			r.add("datastore %s is not shared: %s declares it local to itself; move the VM's disks to a shared datastore", name, f.Source.ID)
		}
		target, mounted := mount(f.Target, id)
		if !mounted {
			i := slices.IndexFunc(f.Target.Spec.Datastores, func(m inventory.DatastoreMount) bool { return m.Name == name })
			if i < 0 {
				r.add("%s has not mounted datastore %s: mount it and add it there", f.Target.ID, name)
				continue
			}
			there := f.Target.Spec.Datastores[i]
			r.add("datastore %s is not shared: %s on %s is another one (%s, not %s); mount the same file system on both hosts", name, there.Path, f.Target.ID, there.ID, id)
			continue
		}
		if !target.Shared {
			r.add("datastore %s is not shared: %s declares it local to itself; move the VM's disks to a shared datastore", name, f.Target.ID)
		}
		if !f.Locks[id] {
			r.add("datastore %s is not shared: %s does not see the lock record that %s wrote there; mount the same file system on both hosts", name, f.Target.ID, f.Source.ID)
		}
	}
}

// Create returns every reason why a VM of the spec cannot be created or started on the host, the spec's own problems first; none
// means that it can.
func Create(spec inventory.VMSpec, host inventory.Host) []string {
	r := &reasons{list: spec.Problems()}
	for _, d := range spec.Devices {
		if d.Host != host.ID {
			r.add("device %s is one of host %s: start the VM there, or take the device out", d.Address, d.Host)
		}
	}
	r.machine(spec, host)
	r.uefi(spec, host)
	r.memory(spec, host)
	for _, id := range datastores(spec) {
		if _, ok := mount(host, id); !ok {
			r.add("%s has not mounted datastore %s: mount it and add it there", host.ID, id)
		}
	}
	r.networks(spec, host)
	return r.list
}

// Restart returns every reason why a VM whose last host lost it cannot be started on the host: those of Create, and the datastores of its
// disks that the host has for itself. One of the same identity there is a copy, not the one that the VM's last host wrote to.
func Restart(vm inventory.VM, host inventory.Host) []string {
	r := &reasons{list: Create(vm.Spec, host)}
	if host.ID == vm.Run.Owner {
		return r.list
	}
	for _, d := range vm.Spec.Disks {
		if m, ok := mount(host, d.File.Datastore); ok && !m.Shared {
			r.add("datastore %s is not shared: %s declares it local to itself", m.Name, host.ID)
		}
	}
	return r.list
}

// machine wants the host's QEMU to build exactly this machine. The versions of QEMU need not be equal: the versioned machine type
// decides, also backwards (7.2 and 10.0 migrate both ways with pc-q35-7.2).
func (r *reasons) machine(spec inventory.VMSpec, host inventory.Host) {
	q := host.Spec.QEMU
	if !slices.Contains(q.Machines, spec.Machine) {
		r.add("QEMU %s on %s has no machine type %s: install a QEMU there that has it, or create the VM with one that all hosts have", q.Version, host.ID, spec.Machine)
	}
	if !slices.Contains(q.CPUModels, spec.CPUModel) {
		r.add("%s cannot run CPU model %s in full (%s): create the VM with a model that all hosts can run", host.ID, spec.CPUModel, q.Accelerator)
	}
}

// uefi wants firmware on the host for a VM that is started by it.
func (r *reasons) uefi(spec inventory.VMSpec, host inventory.Host) {
	if spec.Boot.UEFI && host.Spec.UEFI.Code == "" {
		r.add("%s has no UEFI firmware, which the VM starts from: install the ovmf package there", host.ID)
	}
}

// flash wants both sides' firmware to fill the same flash chips. Their content moves with the VM, so the builds need not be the same.
func (f Facts) flash(r *reasons) {
	from, to := f.Source.Spec.UEFI, f.Target.Spec.UEFI
	if f.VM.Spec.Boot.UEFI && from.Code != "" && to.Code != "" && (from.CodeSize != to.CodeSize || from.VarsSize != to.VarsSize) {
		r.add("the UEFI firmware of %s (%s, %d and %d bytes) has another size than that of %s (%s, %d and %d bytes): install the same build of the ovmf package on both",
			f.Target.ID, to.Code, to.CodeSize, to.VarsSize, f.Source.ID, from.Code, from.CodeSize, from.VarsSize)
	}
}

func (r *reasons) memory(spec inventory.VMSpec, host inventory.Host) {
	if need := spec.Memory + Overhead; host.Status.MemoryFree < need {
		r.add("%s has %v of memory free and the VM needs %v (%v and %v for QEMU): stop or move VMs there, or take a smaller one",
			host.ID, host.Status.MemoryFree, need, spec.Memory, Overhead)
	}
}

// Networks returns every reason why the NICs of the spec cannot be on the host.
func Networks(spec inventory.VMSpec, host inventory.Host) []string {
	r := &reasons{}
	r.networks(spec, host)
	return r.list
}

func (r *reasons) networks(spec inventory.VMSpec, host inventory.Host) {
	for _, n := range spec.NICs {
		if why := host.Spec.LacksNetwork(n.Network); why != "" {
			r.add("%s has no network %s, which %s needs: %s", host.ID, n.Network, n.Name, why)
		}
	}
}

// datastores returns the datastores that the spec needs, each once, in the order of the spec.
func datastores(spec inventory.VMSpec) []inventory.DatastoreID {
	var ids []inventory.DatastoreID
	add := func(f inventory.File) {
		if !f.IsZero() && !slices.Contains(ids, f.Datastore) {
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

func mount(h inventory.Host, id inventory.DatastoreID) (inventory.DatastoreMount, bool) {
	i := slices.IndexFunc(h.Spec.Datastores, func(m inventory.DatastoreMount) bool { return m.ID == id })
	if i < 0 {
		return inventory.DatastoreMount{}, false
	}
	return h.Spec.Datastores[i], true
}
