package handover

import (
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// SourceState is where the source's end of a migration stands.
type SourceState string

// The states of the source.
//
//	              no heir          heir set
//	         ┌──────────────► gate ─────────┐
//	         │                              ▼     completed             running          owner is target
//	copying ─┴────────────────────────► switching ──────────► released ─────────► moved ─────────────────► over
//	   │        pre-switchover             │  │                ▲   │                                         ▲
//	   │        with heir                  │  │ authority      │   │ returned                                │ heir
//	   │ cancel, abort,                    │  │ short          │   │                                         │ cleared
//	   │ target discarded                  │  └──► completed ──┘   │                                         │
//	   ▼                                   │           │ cancel    ▼     authority            resumed        │
//	aborting ◄─────────────────────────────┘           └──────► keeping ──────────► resuming ─────────► ending
//	   │ │              completed                                  ▲                                       ▲
//	   │ └─────────────────────────────────────────────────────────┘                                       │
//	   └─── failed: QEMU runs on by itself ────────────────────────────────────────────────────────────────┘
//
// The source copies until QEMU stops the vCPUs at pre-switchover. With the heir set it lets QEMU go on; from there QEMU alone
// decides: it fails, and then runs on by itself, or it completes, and then never runs by itself again. On completed the source
// decides the release. All that goes wrong before leads to aborting (QEMU's word decides) or keeping (QEMU completed but was
// never released: the source lets it run again), and through ending, which takes the heir back, to over. After the release
// only the target's answer moves the source: running to moved, returned to keeping.
//
// Five states are not in the drawing.
//
// Dropped follows released or moved when the target is fenced without being owner: its memory may have run and is gone, and this
// memory may be older than the disk. Both are given up, and the VM starts cold with a later generation.
//
// Adopted is a source whose agent was restarted and which does not know yet what its QEMU does. Such an attempt is over, unless the
// journal holds released.
//
// Withdrawing is a source that cannot trust its journal: released may be in it or not, as the write failed or the host was
// rebooted. It asks the target to discard, and only the target's final word moves it on. Without that a later restart could find
// the entry, and release a VM that runs here.
//
// Switched and serving are of post-copy (source_pull.go). Switched follows switching or aborting when QEMU reports postcopy-active: its
// vCPUs never run again, and the release, which is decided right then, may have to wait for authority or for the journal. Serving
// follows released when the target runs: this QEMU still has memory that the target pulls, and is ended when that is over. Then moved or
// over follow, whichever the store's word on the owner allows.
const (
	SourceCopying     SourceState = "copying"     // QEMU copies while the VM runs here
	SourceGate        SourceState = "gate"        // QEMU has stopped at pre-switchover, the heir is not set yet
	SourceSwitching   SourceState = "switching"   // QEMU sends the last pages and the device state
	SourceAborting    SourceState = "aborting"    // QEMU was told to cancel
	SourceDone        SourceState = "completed"   // QEMU has completed, the release is not decided
	SourceReleased    SourceState = "released"    // decided; repeated until the target answers
	SourceKeeping     SourceState = "keeping"     // the VM is to run here again and waits for authority
	SourceResuming    SourceState = "resuming"    // cont was ordered here
	SourceWithdrawing SourceState = "withdrawing" // the target is asked to discard, and only its word counts
	SourceSwitched    SourceState = "switched"    // post-copy: QEMU has switched over, the release is not decided
	SourceServing     SourceState = "serving"     // post-copy: the target runs it and pulls
	SourceMoved       SourceState = "moved"       // the target runs it and is not owner yet
	SourceDropped     SourceState = "dropped"     // the target was fenced after the release: this memory is given up
	SourceEnding      SourceState = "ending"      // the attempt is over, the heir is being cleared
	SourceAdopted     SourceState = "adopted"     // restarted, QEMU not looked at yet
	SourceOver        SourceState = "over"        // nothing left to do
)

// SourceEventKind names what happened at the source.
type SourceEventKind string

// The events of the source. SourceHeirCleared is also for a restarted source that finds no heir in the store.
const (
	SourceHeirSet       SourceEventKind = "heir-set"        // the store names the target heir for this migration
	SourceHeirRefused   SourceEventKind = "heir-refused"    // the store refused that for good
	SourceHeirCleared   SourceEventKind = "heir-cleared"    // the store names this host owner and no heir (any more)
	SourceStopped       SourceEventKind = "pre-switchover"  // QEMU has stopped the vCPUs and waits for migrate-continue
	SourceCompleted     SourceEventKind = "completed"       // QEMU reports completed
	SourcePull          SourceEventKind = "pull"            // post-copy: QEMU reports postcopy-active: it has switched, or the pull goes on
	SourcePullPaused    SourceEventKind = "pull-paused"     // post-copy: QEMU reports postcopy-paused: the stream is broken
	SourceFailed        SourceEventKind = "failed"          // QEMU reports failed or cancelled, or never began: it runs on
	SourceGone          SourceEventKind = "gone"            // the QEMU process has ended
	SourceCancel        SourceEventKind = "cancel"          // a user asks to cancel
	SourceAbort         SourceEventKind = "abort"           // the engine gives up: stream lost, no progress, no heir in time
	SourceAnswered      SourceEventKind = "answer"          // the target's answer, or its discarded in the store
	SourceTargetFenced  SourceEventKind = "target-fenced"   // the target was fenced or its host rebooted, and is not owner
	SourceOwnerTarget   SourceEventKind = "owner-target"    // the store names the target owner
	SourceOwnerOther    SourceEventKind = "owner-other"     // the store names an owner of a later generation than the heir's
	SourceTick          SourceEventKind = "tick"            // a wait has lasted its bound; no answer
	SourceJournalFailed SourceEventKind = "journal-failed"  // an entry could not be appended; it may be there or not
	SourceResumed       SourceEventKind = "resumed"         // QEMU runs here after ResumeHere
	SourceResumeFailed  SourceEventKind = "resume-failed"   // QEMU refused cont, or authority was short right before it
	SourceFoundRunning  SourceEventKind = "found-running"   // after a restart: it runs, no migration is under way
	SourceFoundCopying  SourceEventKind = "found-migrating" // after a restart: QEMU still migrates
	SourceFoundDone     SourceEventKind = "found-completed" // after a restart: it completed a migration without a pull, vCPUs stopped
	SourceFoundPull     SourceEventKind = "found-pull"      // after a restart: it has switched to post-copy, the pull goes on or is paused
	SourceFoundPulled   SourceEventKind = "found-pulled"    // after a restart: it completed a migration, the last of it by a pull
	SourceFoundGone     SourceEventKind = "found-gone"      // after a restart: no process, and the journal is of this boot
	SourceFoundRebooted SourceEventKind = "found-rebooted"  // after a reboot: no process, and the run directory is gone with its journal
)

// SourceEvent is one thing that happened at the source.
type SourceEvent struct {
	Kind      SourceEventKind `json:"kind"`
	Answer    Answer          `json:"answer,omitempty"`    // of SourceAnswered
	Authority time.Duration   `json:"authority,omitempty"` // how far this host's authority reaches; zero or less: over
	Why       string          `json:"why,omitempty"`       // one line for the user: who cancelled, what QEMU said
}

// SourceActionKind names what the source is to do.
type SourceActionKind string

// The actions of the source.
const (
	// ContinueSwitchover lets QEMU go on from pre-switchover (migrate-continue).
	ContinueSwitchover SourceActionKind = "continue-switchover"
	// CancelCopy tells QEMU to cancel, and cuts the stream when it does not answer. Before QEMU was told to migrate it is
	// answered at once with SourceFailed. In post-copy it is only cut once ContinueSwitchover was given: a QEMU that has switched
	// meanwhile would end the VM with its migration, and outlives a cut.
	CancelCopy SourceActionKind = "cancel-copy"
	// SourceJournal appends Entry; what follows in the list is done only when it is written.
	SourceJournal SourceActionKind = "journal"
	// SendRelease tells the target to run the VM: over the stream, and through the migration's record when the stream is gone.
	SendRelease SourceActionKind = "send-release"
	// SendDiscard tells the target to discard, the same ways.
	SendDiscard SourceActionKind = "send-discard"
	// SendPullLost tells the target that this QEMU is gone and that nothing more can be pulled, the same ways.
	SendPullLost SourceActionKind = "send-pull-lost"
	// ResumePull connects the own QEMU to the target's anew, after a pause of the pull (migrate with resume).
	ResumePull SourceActionKind = "resume-pull"
	// ResumeHere sends cont to the own QEMU, after a last look at the authority (short: SourceResumeFailed).
	ResumeHere SourceActionKind = "resume-here"
	// KillSource ends the own QEMU and waits for its end; nothing to do when it is gone.
	KillSource SourceActionKind = "kill"
	// FreeSource removes what is left here of the VM: run directory, journal, switch port, older lock records.
	FreeSource SourceActionKind = "free"
	// ClearHeir removes the heir in the store if it is of this migration and the owner is still this host; the answer is
	// SourceHeirCleared, also when there was none.
	ClearHeir SourceActionKind = "clear-heir"
	// RecordDiscarded writes into the migration's record that this host will never run the VM in this migration. With the
	// target fenced that allows a cold start with generation g+2.
	RecordDiscarded SourceActionKind = "record-discarded"
	// RefuseCancel tells the user why it cannot be cancelled any more.
	RefuseCancel SourceActionKind = "refuse-cancel"
	// SourceReport writes Phase and Why into the migration's status.
	SourceReport SourceActionKind = "report"
	// SourceViolation means that only a bug explains what was seen: tests panic, production kills the own QEMU and says Why.
	SourceViolation SourceActionKind = "violation"
)

// SourceAction is one thing for the source to do.
type SourceAction struct {
	Kind  SourceActionKind `json:"kind"`
	Entry Entry            `json:"entry,omitzero"` // of SourceJournal
	Phase inventory.Phase  `json:"phase,omitempty"`
	Why   string           `json:"why,omitempty"`
}

// Source is the source's end of one migration. The zero value is not usable: take NewSource or RestoreSource. It is a value;
// whoever drives the migration keeps the last one that Step returned.
type Source struct {
	Migration inventory.MigrationID `json:"migration"`
	Mode      inventory.Mode        `json:"mode,omitempty"` // whoever drives the machine sets it right after NewSource or RestoreSource
	State     SourceState           `json:"state"`
	Heir      bool                  `json:"heir,omitempty"`     // the store named the heir
	Released  bool                  `json:"released,omitempty"` // the release was decided
	Ends      inventory.Phase       `json:"ends,omitempty"`     // Failed or Canceled once the attempt is given up
	Why       string                `json:"why,omitempty"`      // the first reason for that
	Gone      bool                  `json:"gone,omitempty"`     // the own QEMU has ended
	Running   bool                  `json:"running,omitempty"`  // withdrawing while the own QEMU runs
	Dropped   bool                  `json:"dropped,omitempty"`  // the memory here was given up for good
	Switched  bool                  `json:"switched,omitempty"` // post-copy: the own QEMU has switched, its vCPUs never run again
	Pulled    bool                  `json:"pulled,omitempty"`   // post-copy: the target needs the own QEMU no more
	Paused    bool                  `json:"paused,omitempty"`   // post-copy: the pull is paused
	Owned     bool                  `json:"owned,omitempty"`    // post-copy: the store names the target owner, and the pull is not over
	Sends     int                   `json:"sends,omitempty"`    // releases without an answer, up to UndecidedAfter
	Resumes   int                   `json:"resumes,omitempty"`  // failed tries to run here, up to ResumesMax
}

// NewSource returns the source's end of a migration that has just been admitted; the VM runs here.
func NewSource(id inventory.MigrationID) Source {
	return Source{Migration: id, State: SourceCopying}
}

// RestoreSource returns the source's end after a restart of the agent, from the VM's journal. The first event must be one of
// SourceFound…, or SourceOwnerTarget or SourceOwnerOther when the store names a new owner already; in post-copy one of SourceFound… follows
// SourceOwnerTarget.
func RestoreSource(id inventory.MigrationID, entries []Entry) Source {
	s := Source{Migration: id, State: SourceAdopted, Ends: inventory.Failed, Why: "the source's agent was restarted"}
	switch {
	case has(entries, id, EntryDiscarded):
		s.Dropped, s.Released = true, true
	case has(entries, id, EntryReturned):
		// The release is settled: the target answered returned, which is final.
	case has(entries, id, EntryReleased):
		s.Released = true
	}
	return s
}

// Final reports whether the source has nothing left to do for this migration.
func (s Source) Final() bool { return s.State == SourceOver }
