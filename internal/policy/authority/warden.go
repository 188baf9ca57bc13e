package authority

import (
	"cmp"
	"maps"
	"slices"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Arbiter says who keeps two hosts from writing to one disk.
type Arbiter = inventory.Arbiter

// The arbiters. What nothing is known of is the lease's.
const (
	LeaseArbitrates   = inventory.LeaseArbitrates
	StorageArbitrates = inventory.StorageArbitrates
)

// Cgroup is what the warden sees of one VM's processes, read from the kernel right then.
type Cgroup struct {
	VM     VM
	Living bool // it has a process (cgroup.events, populated)
	Frozen bool // none of them runs (cgroup.events, frozen)
}

// WardenActionKind names what the warden is to do.
type WardenActionKind string

// The actions of the warden. Each may fail, or take time: Look is asked again and sees what became of it.
const (
	Freeze WardenActionKind = "freeze"
	Thaw   WardenActionKind = "thaw"
	Kill   WardenActionKind = "kill"
	Feed   WardenActionKind = "feed"  // the watchdog
	Clear  WardenActionKind = "clear" // tell the agent that nothing of an earlier fence count lives; VM is empty
)

// WardenAction is one thing for the warden to do.
type WardenAction struct {
	Kind WardenActionKind
	VM   VM
	Why  string // for the log
}

// Warden is what the main process of a host does about its VMs when authority ends. Take NewWarden; it is a value, but its methods
// change it in place.
//
// It knows nothing until it was told of an authority, or found one that a former warden of this boot has written down. Until then it
// neither kills nor feeds while something lives: only the agent can find out whose that is.
type Warden struct {
	Settings Settings
	Fences   uint64 // of the authority that was told last
	Until    Moment // its end; 0: none was ever told
	Over     bool   // given up for good under Fences: nothing on lease-arbitrated storage may live

	vms    map[VM]WardenVM
	doomed map[VM]bool // of an earlier fence count, or given up: killed until dead, whatever is told
	fresh  bool        // Fences changed, and Clear was not said yet
}

// WardenVM is what the agent said of a VM.
type WardenVM struct {
	Arbiter Arbiter
	Stopped bool // its vCPUs stand, acknowledged by QEMU, and only the agent lets them run again
}

// NewWarden returns a warden that knows nothing but the authority that its predecessor wrote down, 0 for none.
func NewWarden(s Settings, fences uint64, until Moment) Warden {
	return Warden{Settings: s, Fences: fences, Until: until, vms: map[VM]WardenVM{}, doomed: map[VM]bool{}}
}

// known reports whether an authority was ever told, in this warden's life or its predecessor's.
func (w *Warden) known() bool { return w.Until != 0 || w.Over }

// Told takes the agent's word on its authority. living are the cgroups as they are now: with another fence count than before, those
// of lease-arbitrated VMs are doomed, since others may have taken their VMs over.
func (w *Warden) Told(fences uint64, until Moment, living []Cgroup) {
	switch {
	case !w.known():
		w.fresh = true // whether anything here must die is for the agent to find out: its predecessor's warden left no word
	case w.Over || fences != w.Fences:
		w.doomAll(living)
		w.Until, w.Over, w.fresh = 0, false, true
	}
	w.Fences = fences
	w.Until = max(w.Until, until)
}

// Shorten ends the authority no later than until.
func (w *Warden) Shorten(until Moment) {
	if w.Until != 0 {
		w.Until = min(w.Until, until)
	}
}

// GivenUp takes the agent's word that its epoch is over.
func (w *Warden) GivenUp(living []Cgroup) {
	w.Over, w.Until = true, 0
	w.doomAll(living)
}

func (w *Warden) doomAll(living []Cgroup) {
	for _, c := range living {
		if c.Living && w.vms[c.VM].Arbiter != StorageArbitrates {
			w.doomed[c.VM] = true
		}
	}
}

// Doom takes a predecessor's word that a VM is to be killed until it is dead.
func (w *Warden) Doom(id VM) { w.doomed[id] = true }

// Doomed lists the VMs that are to be killed until they are dead, ordered by id.
func (w *Warden) Doomed() []VM { return slices.Sorted(maps.Keys(w.doomed)) }

// VM takes the agent's word on a VM: who arbitrates its storage, and whether its vCPUs stand. The agent says that they do only after
// QEMU's acknowledgement, and that they do not before it lets them run.
func (w *Warden) VM(id VM, arbiter Arbiter, stopped bool) { w.vms[id] = WardenVM{arbiter, stopped} }

// Stands takes the agent's word that a VM's vCPUs stand, from one that does not know who arbitrates its storage: that stays as it was told before.
func (w *Warden) Stands(id VM) {
	w.vms[id] = WardenVM{cmp.Or(w.vms[id].Arbiter, LeaseArbitrates), true}
}

// Gone takes the agent's word that a VM has left this host; what still lives of it counts as unknown, and unknown is the lease's.
func (w *Warden) Gone(id VM) { delete(w.vms, id) }

// VMs lists the VMs that were told and are not gone, ordered by id.
func (w *Warden) VMs() []VM { return slices.Sorted(maps.Keys(w.vms)) }

// Knows returns what was said of a VM; the zero value, which is the lease's, when nothing was.
func (w *Warden) Knows(id VM) WardenVM { return w.vms[id] }

// Valid reports whether the VMs of this host may run.
func (w *Warden) Valid(now Moment) bool {
	return !w.Over && w.Until != 0 && now < w.Settings.freezeAt(w.Until)
}

// FreezeAt returns when Valid ends; ok is false when it has no end to wait for.
func (w *Warden) FreezeAt() (at Moment, ok bool) {
	return w.Settings.freezeAt(w.Until), !w.Over && w.Until != 0
}

// Clean reports whether an authority was told and nothing lives of what was here under an earlier one, as of the last Look.
func (w *Warden) Clean() bool { return w.Until != 0 && !w.fresh && len(w.doomed) == 0 }

// Dead reports whether the cgroups prove, without any authority, that no VM on lease-arbitrated storage runs or will run: each is frozen
// after an acknowledged stop, or dead.
func (w *Warden) Dead(cgroups []Cgroup) bool {
	return !slices.ContainsFunc(cgroups, func(c Cgroup) bool {
		vm := w.vms[c.VM]
		quiet := vm.Arbiter == StorageArbitrates || vm.Stopped && c.Frozen
		return c.Living && (w.doomed[c.VM] || !quiet)
	})
}

// Look says what is to be done about the cgroups as they are now. Feed comes last, and only with proof: the authority is valid and
// nothing doomed lives, or nothing on lease-arbitrated storage runs: each is frozen after an acknowledged stop, or dead. A host that
// never had an authority and runs nothing is fed too. The proof is of the moment now: a Feed that is late is to be left out.
func (w *Warden) Look(now Moment, cgroups []Cgroup) []WardenAction {
	var do []WardenAction
	proven, valid := true, w.Valid(now)
	living := map[VM]bool{}
	for _, c := range cgroups {
		if !c.Living {
			continue
		}
		living[c.VM] = true
		vm := w.vms[c.VM]
		switch {
		case w.doomed[c.VM] && (!valid || !defect.Seeded.DoomedThawed()):
			proven = false
			do = append(do, WardenAction{Kill, c.VM, "its host was fenced"})
		case !w.known():
			proven = false
		case vm.Arbiter == StorageArbitrates, valid:
			if c.Frozen {
				do = append(do, WardenAction{Thaw, c.VM, "the authority is back"})
			}
		case vm.Stopped && c.Frozen:
		case vm.Stopped:
			proven = false
			do = append(do, WardenAction{Freeze, c.VM, "the authority is over"})
		default:
			proven = defect.Seeded.KillNotAwaited() && proven
			do = append(do, WardenAction{Kill, c.VM, "the authority is over, and it was not stopped"})
		}
	}
	for _, id := range w.Doomed() {
		if !living[id] {
			delete(w.doomed, id)
		}
	}
	slices.SortStableFunc(do, func(a, b WardenAction) int { return cmp.Compare(a.VM, b.VM) })
	if w.fresh && len(w.doomed) == 0 {
		w.fresh = false
		do = append(do, WardenAction{Kind: Clear})
	}
	if proven || defect.Seeded.FeedUnproven() {
		do = append(do, WardenAction{Kind: Feed})
	}
	return do
}
