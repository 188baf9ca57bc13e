package admission

import (
	"maps"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Departure is all that CheckDeparture looks at: a cold migration, of a VM that is off, as the VM's owner sees it.
type Departure struct {
	VM     inventory.VM
	Source inventory.Host
	Asked  inventory.HostID // the target as it was asked for; it may be the source, when only the datastore changes
	Target inventory.Host   // without an ID: no such host
	Silent string           // why the target does not answer; empty: it does

	Datastore string   // as it was asked for; empty: the disks stay where they are
	Found     bool     // the target has that datastore
	Leaves    []string // disks that go to another datastore
	Thin      []string // those of them that are thin clones
	Clones    []string // VMs that are thin clones of them
}

// CheckDeparture returns every reason why the VM cannot be moved, as far as its owner knows; none means that it may.
func CheckDeparture(d Departure) []string {
	r := &reasons{}
	name := d.VM.Spec.Name
	switch {
	case d.Target.ID == "":
		r.add("there is no host %q: see godwit host ls", string(d.Asked))
	case d.Silent != "":
		r.add("%s does not answer (%s): see whether its agent runs and the network is up, or choose another host", d.Target.ID, d.Silent)
	}
	if d.Target.ID == d.Source.ID && d.Target.ID != "" && (d.Datastore == "" || d.Found && len(d.Leaves) == 0) {
		r.add("the VM is there already: choose another host with --to, or another datastore with --datastore")
	}
	switch d.VM.Status.State {
	case inventory.Stopped:
		if d.VM.Run.Wanted != inventory.PowerOff {
			r.add("%s is wanted on: stop it first (godwit vm stop %s)", name, name)
		}
	case inventory.Running, inventory.Paused, inventory.Starting, inventory.Migrating, inventory.Unknown:
		r.add("%s is %v, and only a VM that is off is moved: stop it first (godwit vm stop %s), or move it while it runs with godwit vm migrate", name, d.VM.Status.State, name)
	case inventory.Crashed:
		r.add("%s has crashed: stop it first (godwit vm stop %s --force)", name, name)
	}
	if heir := d.VM.Run.Heir; !heir.IsZero() {
		r.add("migration %s of %s has not ended: wait for it, or cancel it (godwit migration cancel %s)", heir.Migration, name, heir.Migration)
	}
	if d.Target.ID != "" && d.Target.ID != d.Source.ID {
		for _, dev := range d.VM.Spec.Devices {
			r.add("%s holds device %s of host %s, which cannot move with it: take the device out first", name, dev.Address, dev.Host)
		}
	}
	if d.Datastore != "" && !d.Found && d.Target.ID != "" {
		var has []string
		for _, m := range d.Target.Spec.Datastores {
			has = append(has, m.Name)
		}
		r.add("%s has no datastore %q: it has %s", d.Target.ID, d.Datastore, orNone(has))
	}
	for _, disk := range d.Thin {
		r.add("%s is a thin clone and cannot leave the datastore of its template: clone the VM in full with godwit vm clone --full, and move that", disk)
	}
	if len(d.Clones) > 0 {
		r.add("thin clones stand on its disks, which therefore cannot leave their datastore: destroy %s first", strings.Join(d.Clones, ", "))
	}
	return r.list
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Arrival is all that CheckArrival looks at: the same move as the target sees it.
type Arrival struct {
	Spec   inventory.VMSpec // as it is to be
	Target inventory.Host   // as it says of itself now
	Source inventory.HostID

	Need   map[inventory.DatastoreID]inventory.Bytes // that the files to come will take
	Free   map[inventory.DatastoreID]inventory.Bytes
	Taken  []inventory.File        // files to come whose names are taken
	Unseen []inventory.DatastoreID // on which the target does not see what the source has written
}

// CheckArrival returns every reason why the VM cannot come to be on the target. That it can start there now is not asked: memory is
// looked at when it starts.
func CheckArrival(a Arrival) []string {
	r := &reasons{list: a.Spec.Problems()}
	r.machine(a.Spec, a.Target)
	for _, id := range datastores(a.Spec) {
		if _, ok := mount(a.Target, id); !ok {
			r.add("%s has not mounted datastore %s: mount it and add it there, or bring the disks to another one with --datastore", a.Target.ID, id)
		}
	}
	r.networks(a.Spec, a.Target)
	r.list = append(r.list, CheckFiles(a)...)
	return r.list
}

// CheckFiles returns every reason why the files cannot come to be on the target.
func CheckFiles(a Arrival) []string {
	r := &reasons{}
	name := func(id inventory.DatastoreID) string {
		if m, ok := mount(a.Target, id); ok {
			return m.Name
		}
		return string(id)
	}
	for _, id := range slices.Sorted(maps.Keys(a.Need)) {
		if free, need := a.Free[id], a.Need[id]; free < need {
			r.add("datastore %s on %s has %v free and the files need %v: free some, or choose another datastore", name(id), a.Target.ID, free, need)
		}
	}
	for _, f := range a.Taken {
		r.add("there is a file %s on datastore %s already: rename or remove it, or choose another datastore", f.Path, name(f.Datastore))
	}
	for _, id := range a.Unseen {
		r.add("datastore %s is not shared: %s does not see what %s has written there; mount the same file system on both hosts, or name another datastore with --datastore",
			name(id), a.Target.ID, a.Source)
	}
	return r.list
}
