// Package defect holds the mistakes that the simulator or the explorer must find. Each is a method of Seeded that says no; a file with the
// build tag defect_NAME makes it say yes, and the rule that asks it is then broken. A program that is built without such a tag has none of
// it: the compiler drops what depends on them. `make defects` builds each and demands that it is found: by the explorer of policy/handover
// where the rule is one of a single hand-over (the list EXPLORED in the Makefile), by the simulator otherwise.
//
// Only policy, the simulator, the explorer and the few lines of control that carry a rule out ask it.
package defect

// Seeded says which defects this program was built with.
var Seeded seeded

// none says no to every defect. A tagged file gives seeded a method of the same name, which then counts instead.
type none struct{}

// seeded is none with what the build tags add.
type seeded struct{ none }

// Names lists the defects this program was built with, for what it prints; nil: none.
var Names []string

// FenceUncompared fences without comparing the renewal that was seen last.
func (none) FenceUncompared() bool { return false }

// WallClock takes the wall clock for CLOCK_BOOTTIME.
func (none) WallClock() bool { return false }

// SentAfterAck counts an authority from the renewal's acknowledgement and not from before its sending.
func (none) SentAfterAck() bool { return false }

// SilenceShort waits less before a fence than the authority lasts.
func (none) SilenceShort() bool { return false }

// StoredTime lets a new leader believe the time that a renewal says it was made at.
func (none) StoredTime() bool { return false }

// KillNotAwaited takes a VM for dead as soon as it was told to end.
func (none) KillNotAwaited() bool { return false }

// BufferedDisk lets disks go through the page cache, which outlives QEMU.
func (none) BufferedDisk() bool { return false }

// ResumeLostEpoch lets VMs run on when the epoch is over, under a new one.
func (none) ResumeLostEpoch() bool { return false }

// LeaseTrusted takes the end of an etcd lease for the death of its host.
func (none) LeaseTrusted() bool { return false }

// StaleRead reads what the nearest member of the store has, however old.
func (none) StaleRead() bool { return false }

// OwnerAfterCont switches over without an heir: the store hears of the new owner when that runs already.
func (none) OwnerAfterCont() bool { return false }

// CachedRestarts restarts what a cache says is to be restarted, and compares nothing.
func (none) CachedRestarts() bool { return false }

// HeirIgnored restarts a dead owner's VM without a thought for its heir.
func (none) HeirIgnored() bool { return false }

// ReleaseOnTimeout lets a loaded target run when no release comes.
func (none) ReleaseOnTimeout() bool { return false }

// JournalLate sends the release before it is in the journal.
func (none) JournalLate() bool { return false }

// EpochUncompared writes to the store without comparing the epoch.
func (none) EpochUncompared() bool { return false }

// FeedUnproven feeds the watchdog whatever runs.
func (none) FeedUnproven() bool { return false }

// MassOfOne blocks the fence of one silent host where that is more than 30 percent of all.
func (none) MassOfOne() bool { return false }

// RestartOutlives gives an agent that begins an authority of its own before any renewal was acknowledged.
func (none) RestartOutlives() bool { return false }

// ShortenLate tells the warden of a shorter lease when the store has it, and not before.
func (none) ShortenLate() bool { return false }

// DoomedThawed lets VMs of an earlier fence count run on when authority is back.
func (none) DoomedThawed() bool { return false }

// PlanPromisesWatchdog says in the last renewal before an ordered end that a watchdog guards the host, and then switches it off.
func (none) PlanPromisesWatchdog() bool { return false }

// ClearNotAwaited lets an agent take its VMs up before the warden has ended those of the earlier fence count.
func (none) ClearNotAwaited() bool { return false }

// ContUntold lets a VM run before the warden was told that it will.
func (none) ContUntold() bool { return false }

// RenewalsReorder lets a renewal that was delayed overwrite a later one.
func (none) RenewalsReorder() bool { return false }

// ReleaseEarly releases before QEMU has completed: it may still fail, and run on.
func (none) ReleaseEarly() bool { return false }

// ResumeAfterRelease lets the source run again when nobody answers its release.
func (none) ResumeAfterRelease() bool { return false }

// ReturnedIgnored lets the source wait on when the target has given the VM back.
func (none) ReturnedIgnored() bool { return false }

// HeirLate switches over without waiting for the heir, which is named when QEMU is at it.
func (none) HeirLate() bool { return false }

// OldGeneration lets the target of an earlier generation become owner after a later one was begun.
func (none) OldGeneration() bool { return false }

// AuthorityUnchecked lets the target run without a look at how far its authority reaches.
func (none) AuthorityUnchecked() bool { return false }

// TakeoverFenced lets a loaded target run, instead of discarding, because the source is fenced.
func (none) TakeoverFenced() bool { return false }

// SecondSwitchover goes on copying under the same migration id when a switchover has failed.
func (none) SecondSwitchover() bool { return false }

// PullSourceKilled ends the source's QEMU when the target runs, though the target still pulls from it.
func (none) PullSourceKilled() bool { return false }
