package inventory

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Migration is one attempt to move a running VM. It carries at most one switchover; a retry is a new one.
type Migration struct {
	ID     MigrationID
	Spec   MigrationSpec
	Status MigrationStatus
}

// MigrationSpec is written by whoever asked for the migration. Canceled is the only field that changes.
type MigrationSpec struct {
	VM          VMID
	VMName      string // as it was named then, for lists
	Source      HostID
	Target      HostID
	Bandwidth   BytesPerSecond // 0: no limit
	DowntimeMax time.Duration  // the longest predicted pause at which the switchover may begin; 0: the default
	Requested   time.Time
	By          string // who asked
	Canceled    bool
}

// Mode is how the memory of a running VM gets to the target.
type Mode int

// The modes. PreCopyOnly can be given up at any moment before the release, and then the VM runs on at the source; PostCopy not after
// QEMU's switch.
const (
	PreCopyOnly Mode = iota // the VM runs at the target when all memory is there
	PostCopy                // the VM runs at the target with what is there, and pulls the rest from the source
)

var modeNames = [...]string{"pre-copy", "post-copy"}

// String returns the mode's name as logs show it.
func (m Mode) String() string {
	if m < 0 || int(m) >= len(modeNames) {
		return "unknown"
	}
	return modeNames[m]
}

// Phase is where a migration stands. The order of the constants is the order of the phases.
type Phase int

// The phases; those from Completed on are final.
const (
	Planned    Phase = iota // recorded, nobody works on it yet
	Admitted                // no reason stands against it
	Prepared                // the target's QEMU listens, its switch port is reserved
	PreCopy                 // memory is copied in rounds while the VM runs at the source
	Switchover              // the VM is stopped; last pages and device state move
	Released                // the source can never run it again without the target's word
	OnTarget                // it runs on the target; the source cleans up
	Completed               // over: it runs on the target and nothing is left at the source
	Failed                  // over: it runs at the source as before
	Canceled                // over on request: it runs at the source as before
	Undecided               // released, and the target does not answer: nobody may run it until it does or is fenced
)

var phaseNames = [...]string{
	"planned", "admitted", "prepared", "pre-copy", "switchover", "released", "on-target", "completed", "failed", "canceled",
	"undecided",
}

// String returns the phase's name as logs, CLI and JSON show it.
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return "unknown"
	}
	return phaseNames[p]
}

// Final reports whether nothing will happen any more.
func (p Phase) Final() bool { return p == Completed || p == Failed || p == Canceled }

// MigrationStatus is written by the source's agent, and after an owner change by the target's.
type MigrationStatus struct {
	Phase    Phase
	Reason   string // why it failed or was canceled
	Reasons  []string
	Progress Progress
	Started  time.Time
	Ended    time.Time
	Result   MigrationResult
	Released bool // the release was decided: see policy/handover

	// SourceDiscarded says that the source will never run the VM in this migration: with the target dead the leader gives it a new owner.
	SourceDiscarded bool
}

// Next returns the status that a migration gets after this one. One that is over stays in its phase: another is fault.Conflict.
func (s MigrationStatus) Next(id MigrationID, next MigrationStatus) (MigrationStatus, error) {
	if s.Phase.Final() && s.Phase != next.Phase {
		return s, fault.New(fault.Conflict, "migration %s is over (%v): it cannot become %v", id, s.Phase, next.Phase)
	}
	return next, nil
}

// Progress is what the engine sees while it works. Rates are of the last round.
type Progress struct {
	Round      int
	Total      Bytes
	Remaining  Bytes
	Sent       Bytes
	DirtyRate  BytesPerSecond
	SendRate   BytesPerSecond
	ETA        time.Duration // to the switchover; negative: unknown
	Throttle   int           // percent of vCPU time taken away
	Elapsed    time.Duration
	DowntimeBy time.Duration // the pause that QEMU predicts
}

// MigrationResult is what a finished migration cost.
type MigrationResult struct {
	Total        time.Duration // request to clean-up
	Downtime     time.Duration // as the source's QEMU reports it; less than what a client sees
	StopToResume time.Duration // from the source's STOP event to the target's RESUME event
	Sent         Bytes
	Rounds       int
}
