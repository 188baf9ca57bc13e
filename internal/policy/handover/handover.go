// Package handover is the hand-over of one running VM from the host that runs it (the source, A) to the host that will (the
// target, B): who may run it at each moment, and what a crash, a lost message or a lost authority does to that.
//
// It is two state machines, Source (source.go) and Target (target.go), one for each end. A machine is a plain value; Step takes an
// event and returns the next value with the actions that follow from it. The package has no clock, does no I/O and starts no
// goroutine: control/migrate feeds events and does the actions, the simulator does the same in virtual time, and the explorer in
// the tests walks every interleaving of the two.
//
// What either end writes into the VM's run record, and what a read of the store or a restart is to it, says Attempt (attempt.go).
//
// # The rules
//
//   - No heir, no switchover. While the store names B heir for this migration, nobody but A and B may start the VM, until each of
//     them is fenced, rebooted, or has answered that it discarded.
//   - Before the release only A may run the VM, after it only B. A decides the release once, when its QEMU reports completed, and
//     repeats it until B answers. A resumes after that only on B's word "returned".
//   - B runs the VM on A's release and on nothing else: not on a timeout, not because A is dead. A loaded target without a
//     release may hold memory that is older than the disk, since A's QEMU may have failed late and run on.
//   - B's discard is final. A release that comes later is answered "returned".
//   - A migration id carries one switchover. Whatever ends it, ends the attempt.
//   - In post-copy the point of no return is QEMU's switch, and the release is decided when QEMU reports it. Both ends stay needed until
//     the target has pulled all memory. If one is lost before that, what is left of the VM is ended and it starts cold.
//   - Right before the release and right before each cont the own authority must reach AuthorityMargin further.
//   - What cannot be taken back is in the journal before it is done: released, returned, resuming, discarded. After a restart of
//     an agent the journal decides, then the store, then what QEMU says.
//
// # The contract with whoever drives the machines
//
//   - Events are given one at a time, and the actions of one event are done in order before the next event is given. Every
//     event carries the authority as it is right then.
//   - When an action fails, those after it are not done, and its failure comes as an event (SourceJournalFailed,
//     SourceResumeFailed, TargetJournalFailed, TargetContFailed). Sends, reports and writes to the store that fail without an
//     event of their own need nothing: the tick asks for them again.
//   - Reports may be written later, so that no round trip to the store lies in the pause; the last one counts.
//   - The heir is set by a transaction that ends before ClearHeir begins, and is not asked for in any other state than
//     copying and gate.
//   - A cont whose outcome is unknown (QEMU closed the socket, or did not answer in time) did not fail. The driver of the
//     machine finds out, and gives gone, resumed or failed. A cont that was certainly never sent did fail.
//   - In post-copy the source's loss comes from the source's word, or from the store: its host was fenced, booted or removed since the
//     migration was prepared. It is TargetPullLost only when QEMU, asked after that, has not completed; else TargetLoaded comes first.
//   - Ticks (SourceTick, TargetTick) come whenever a wait has lasted some bound that the caller names, for as long as
//     Final is false.
//   - A VM whose QEMU is gone is started again by its owner only when the owner's end of the migration is Final.
//   - After a restart the first event is one of those that say what was found.
package handover

import (
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// AuthorityMargin is how far a host's authority must still reach when it decides the release or lets vCPUs run: long enough for
// the decision to be carried out before anybody could fence the host (docs/architecture.md, "The hand-over rules").
const AuthorityMargin = time.Second

// UndecidedAfter is the number of releases that may stay without an answer before the migration is reported as undecided. The
// release is repeated all the same.
const UndecidedAfter = 3

// ResumesMax is how often the source tries to let its own QEMU run again before it gives that memory up. The first tries may
// meet the image lock of a target that is dying.
const ResumesMax = 5

// EntryKind names what a journal entry announces.
type EntryKind string

// The entries, each written before the deed it names. Released and Returned are the source's, Resuming the target's; Discarded is
// the word of either that it will never run the VM in this migration.
const (
	EntryReleased  EntryKind = "released"  // source: the target may run it, this QEMU never again without the target's word
	EntryReturned  EntryKind = "returned"  // source: the target gave it back, this QEMU is about to run
	EntryResuming  EntryKind = "resuming"  // target: the release is here, this QEMU is about to run
	EntryDiscarded EntryKind = "discarded" // either: final, this QEMU never runs
)

// Entry is one line of a VM's journal. Each is written once by the end that decided it, before it acts; entries of other
// migrations of the same VM are skipped when a machine is restored.
type Entry struct {
	Migration inventory.MigrationID `json:"migration"`
	Kind      EntryKind             `json:"kind"`
	Why       string                `json:"why,omitempty"`
}

// Answer is what the target tells the source, to a release, to a discard, or unasked.
type Answer string

// The answers. Each is final: a target that gave one never gives another one but for Discarded and Returned, which say the same
// to a discard and to a release, for Pulled, which comes after Running, and for the Lost of a host to which the leader gave the VM after all of
// them (Attempt.TargetSettled).
const (
	AnswerRunning   Answer = "running"   // the target has the VM: it runs or ran there; in post-copy: and pulls still
	AnswerPulled    Answer = "pulled"    // post-copy: the target has the VM, and needs the source's QEMU no more
	AnswerReturned  Answer = "returned"  // to a release: it never ran there and never will
	AnswerDiscarded Answer = "discarded" // to a discard or unasked: it never ran there and never will
	AnswerLost      Answer = "lost"      // the target's host was rebooted, or has the VM from the leader: nothing of this attempt runs there, but it may have
)

// has reports whether the journal holds an entry of the kind for the migration.
func has(entries []Entry, id inventory.MigrationID, kind EntryKind) bool {
	for _, e := range entries {
		if e.Migration == id && e.Kind == kind {
			return true
		}
	}
	return false
}
