package handover

import (
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// TargetState is where the target's end of a migration stands.
type TargetState string

// The states of the target.
//
//	┌───────────┐ prepared ┌──────────┐ loaded ┌────────┐ release,   ┌──────────┐ cont ok ┌─────────┐ owner    ┌───────┐
//	│ preparing ├─────────►│ incoming ├───────►│ loaded ├───────────►│ resuming ├────────►│ running ├─────────►│ owner │
//	└─────┬─────┘          └────┬─────┘        └───┬────┘ authority  └────┬─────┘         └─────────┘ written  └───────┘
//	      │                     │                  │                      │ cont refused
//	      │ discard, gone, authority short         │                      │
//	      ▼                     ▼                  ▼                      ▼
//	   ┌────────────────────────────────────────────────────────────────────┐
//	   │ discarding ──── journalled ────► discarded: a release is returned  │
//	   └────────────────────────────────────────────────────────────────────┘
//
// The target loads and waits. The release may come before QEMU reports loaded (it is kept), several times, or after a discard.
// Up to resuming the target may discard at any moment, since it cannot have run. In resuming it waits for QEMU's word on cont.
//
// Not in the drawing: adopted, a target whose agent was restarted and has not looked at its QEMU yet; and lost, a target whose
// host was rebooted, so that its journal is gone: the VM may have run here, and the target says just that. A restart in resuming
// leaves the same doubt in a smaller form: QEMU may have run and stopped or died since. Such a target never says
// returned; it goes on to run the VM, and if it cannot, it takes the VM over as one that crashed here.
//
// In post-copy (target_pull.go) loaded means that the device state is here and the vCPUs may run; a part of the memory is at the source
// still. The target pulls it in any state from loaded on, and is not over before that ends.
const (
	TargetPreparing  TargetState = "preparing"  // QEMU and the switch port are being made
	TargetIncoming   TargetState = "incoming"   // QEMU listens or loads
	TargetLoadedUp   TargetState = "loaded"     // QEMU has loaded everything and is paused
	TargetResuming   TargetState = "resuming"   // released; cont is on its way
	TargetRunning    TargetState = "running"    // it runs or ran here; the store does not say so yet
	TargetOwner      TargetState = "owner"      // the store names this host owner: over
	TargetDiscarding TargetState = "discarding" // given up, not in the journal yet
	TargetDiscarded  TargetState = "discarded"  // given up for good: over
	TargetAdopted    TargetState = "adopted"    // restarted, QEMU not looked at yet
	TargetLost       TargetState = "lost"       // rebooted: it may have run here: over
)

// TargetEventKind names what happened at the target.
type TargetEventKind string

// The events of the target.
const (
	TargetPrepared       TargetEventKind = "prepared"        // QEMU listens, the switch port is reserved
	TargetLoaded         TargetEventKind = "loaded"          // QEMU reports the incoming migration completed
	TargetPull           TargetEventKind = "pull"            // post-copy: QEMU reports postcopy-active: the vCPUs may run, or the pull goes on
	TargetPullPaused     TargetEventKind = "pull-paused"     // post-copy: QEMU reports postcopy-paused: the stream is broken
	TargetPullLost       TargetEventKind = "pull-lost"       // post-copy: the source's QEMU or host is lost, and the own QEMU, asked after that, is not whole
	TargetReleased       TargetEventKind = "release"         // the source's release, perhaps not the first
	TargetDiscard        TargetEventKind = "discard"         // the source, the leader or this host's engine gives up
	TargetContOK         TargetEventKind = "cont-ok"         // QEMU runs
	TargetContFailed     TargetEventKind = "cont-failed"     // QEMU refused cont, or authority was short right before it
	TargetGone           TargetEventKind = "gone"            // the QEMU process has ended, or its loading failed
	TargetAuthorityShort TargetEventKind = "authority-short" // the own authority reaches less than AuthorityMargin
	TargetOwnerWritten   TargetEventKind = "owner-written"   // the store names this host owner
	TargetOwnerRefused   TargetEventKind = "owner-refused"   // the store names neither this host owner nor heir
	TargetTick           TargetEventKind = "tick"            // a wait has lasted its bound
	TargetJournalFailed  TargetEventKind = "journal-failed"  // an entry could not be appended; it may be there or not
	TargetFoundIncoming  TargetEventKind = "found-incoming"  // after a restart: QEMU has not loaded everything
	TargetFoundLoaded    TargetEventKind = "found-loaded"    // after a restart: QEMU has loaded and is stopped
	TargetFoundRunning   TargetEventKind = "found-running"   // after a restart: vCPUs run, or stopped by a guest's panic or I/O error
	TargetFoundPull      TargetEventKind = "found-pull"      // after a restart: vCPUs stopped and able to run, the pull is not over
	TargetFoundPulling   TargetEventKind = "found-pulling"   // after a restart: vCPUs run, the pull is not over
	TargetFoundGone      TargetEventKind = "found-gone"      // after a restart: no process, and the journal is of this boot
	TargetFoundRebooted  TargetEventKind = "found-rebooted"  // after a reboot: no process, and the run directory is gone with its journal
)

// TargetEvent is one thing that happened at the target.
type TargetEvent struct {
	Kind      TargetEventKind `json:"kind"`
	Authority time.Duration   `json:"authority,omitempty"` // how far this host's authority reaches; zero or less: over
	Why       string          `json:"why,omitempty"`       // one line for the user
}

// TargetActionKind names what the target is to do.
type TargetActionKind string

// The actions of the target.
const (
	// TargetJournal appends Entry; what follows in the list is done only when it is written.
	TargetJournal TargetActionKind = "journal"
	// Cont sends cont to QEMU after a last look at the authority (short: TargetContFailed).
	Cont TargetActionKind = "cont"
	// SendAnswer tells the source Answer: over the stream, and through the migration's record when the stream is gone.
	SendAnswer TargetActionKind = "answer"
	// RecoverPull lets the own QEMU listen for the source's anew, after a pause of the pull (migrate-recover).
	RecoverPull TargetActionKind = "recover-pull"
	// KillTarget ends the own QEMU and waits for its end, so that its image locks are free; nothing to do when it is gone.
	KillTarget TargetActionKind = "kill"
	// FreeTarget removes what was made here but the journal, which stays until the migration's record is final; the number of
	// the lock record is burnt.
	FreeTarget TargetActionKind = "free"
	// OpenPort opens the switch port and announces the VM on its networks.
	OpenPort TargetActionKind = "open-port"
	// WriteOwner writes this host owner with the heir's generation and clears the heir, if the heir is of this migration.
	WriteOwner TargetActionKind = "write-owner"
	// TargetViolation means that only a bug explains what was seen: tests panic, production kills the own QEMU and says Why.
	TargetViolation TargetActionKind = "violation"
)

// TargetAction is one thing for the target to do.
type TargetAction struct {
	Kind   TargetActionKind `json:"kind"`
	Entry  Entry            `json:"entry,omitzero"`   // of TargetJournal
	Answer Answer           `json:"answer,omitempty"` // of SendAnswer
	Why    string           `json:"why,omitempty"`
}

// Target is the target's end of one migration. The zero value is not usable: take NewTarget or RestoreTarget. It is a value;
// whoever drives the migration keeps the last one that Step returned.
type Target struct {
	Migration inventory.MigrationID `json:"migration"`
	Mode      inventory.Mode        `json:"mode,omitempty"` // whoever drives the machine sets it right after NewTarget or RestoreTarget
	State     TargetState           `json:"state"`
	Released  bool                  `json:"released,omitempty"` // the release is here
	Doubt     bool                  `json:"doubt,omitempty"`    // restarted in resuming: it may have run
	Waits     bool                  `json:"waits,omitempty"`    // in resuming: cont was not ordered yet
	Pulling   bool                  `json:"pulling,omitempty"`  // post-copy: a part of the memory is at the source still
	Paused    bool                  `json:"paused,omitempty"`   // post-copy: the pull is paused
	Why       string                `json:"why,omitempty"`      // why it discarded
}

// NewTarget returns the target's end of a migration that is being prepared here.
func NewTarget(id inventory.MigrationID) Target {
	return Target{Migration: id, State: TargetPreparing}
}

// RestoreTarget returns the target's end after a restart of the agent, from the VM's journal. The first event must be one of
// TargetFound…, or TargetOwnerWritten when the store names this host owner already; in post-copy one of TargetFound… follows that.
func RestoreTarget(id inventory.MigrationID, entries []Entry) Target {
	t := Target{Migration: id, State: TargetAdopted}
	switch {
	case has(entries, id, EntryDiscarded):
		t.State, t.Why = TargetDiscarded, "discarded before the agent was restarted"
	case has(entries, id, EntryResuming):
		t.Released, t.Doubt = true, true
	}
	return t
}

// Final reports whether the target has nothing left to do for this migration but to answer.
func (t Target) Final() bool {
	return t.State == TargetOwner && !t.Pulling || t.State == TargetDiscarded || t.State == TargetLost
}
