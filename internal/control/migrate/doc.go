// Package migrate moves a running VM from one host to another. It drives the two state machines of policy/handover with real
// QEMUs, streams, switch ports and records: Source on the host that gives the VM away, Target on the host that takes it.
//
//	source's agent                                   target's agent
//	──────────────                                   ──────────────
//	admission, Prepare ────────────────────────────► admission, lock record, QEMU -incoming, port reserved
//	heir := target (store)
//	QEMU ══ unix ══ Relay ═════ mTLS stream ════════ Relay ══ unix ══ QEMU        pre-copy, in rounds
//	hold the port; QEMU stops (pre-switchover)
//	forward the port, migrate-continue ════════════► last pages, device state
//	QEMU says completed; journal "released"
//	Release ───────────────────────────────────────► journal "resuming", cont, open the port
//	◄──────────────────────────────────── running ── owner := target (store)
//	owner seen: kill the own QEMU, free everything
//
// What may happen in which order is decided in policy/handover and nowhere else; this package asks it at every event and
// does what it says. A fault before the release leaves the VM running at the source. QEMU sees unix sockets only; the
// agents own what can be cut.
//
// The package knows neither etcd nor the API: Records, Far and Ports are what it needs of them.
package migrate

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// Records is what a migration reads and writes in the store. The changes of the run record are those of policy/handover's Attempt, each in one
// transaction under this host's epoch; handover.ErrRefused is on the path of an error that is one of its rules. Other errors of kind fault.Conflict mean that
// somebody else was faster, or that this host's epoch is over; fault.Unavailable may pass.
type Records interface {
	// SetHeir names the heir, unless the target leaves the cluster (fault.Conflict too). Every fault.Conflict of it is final.
	SetHeir(ctx context.Context, vm inventory.VMID, a handover.Attempt) error
	ClearHeir(ctx context.Context, vm inventory.VMID, a handover.Attempt) error
	TakeOwner(ctx context.Context, vm inventory.VMID, a handover.Attempt) error
	// Source reads what the source looks at: a sign of the target's host, and then the VM's run record.
	Source(ctx context.Context, vm inventory.VMID, a handover.Attempt) (inventory.VMRun, inventory.Sign, error)
	// Target reads what the target looks at: the migration's status, and then the VM's run record.
	Target(ctx context.Context, vm inventory.VMID, a handover.Attempt) (inventory.VMRun, inventory.MigrationStatus, error)
	// Status writes the migration's status.
	Status(ctx context.Context, id inventory.MigrationID, s inventory.MigrationStatus) error
}

// Far is the target's agent as the source sees it. Calls may be repeated.
type Far interface {
	Prepare(ctx context.Context, r PrepareRequest) (PrepareAnswer, error)
	// Warm makes ready what Release goes by, which may have been closed during a long copy. It only spares time.
	Warm(ctx context.Context) error
	Release(ctx context.Context, id inventory.MigrationID) (ReleaseAnswer, error)
	// Discard returns the target's final word: discarded, running or lost.
	Discard(ctx context.Context, id inventory.MigrationID) (handover.Answer, error)
	// Stream opens the connection that carries the memory.
	Stream(ctx context.Context, id inventory.MigrationID) (net.Conn, error)
}

// Port is where a NIC meets its network on one host.
type Port struct {
	ID  string // as Ports knows it
	NIC int    // inventory.NIC.Number
}

// ErrNotCounted is what Ports says of a port whose frames nobody counts: those that a stopped guest did not get are lost.
var ErrNotCounted = errors.New("frames of this port are not counted")

// Ports is what carries the VM's networks, as both ends see it; *vnet.Client is one.
type Ports interface {
	Hold(ctx context.Context, port string, drain time.Duration) error
	Unhold(ctx context.Context, port string) error
	Track(ctx context.Context, port string, filter vnet.Filter) error
	Tracked(ctx context.Context, port string) (uint64, error)
	Forward(ctx context.Context, port string, target inventory.HostID, id inventory.MigrationID, again int) error
	Abort(ctx context.Context, port string, id inventory.MigrationID) error
	Commit(ctx context.Context, port string, id inventory.MigrationID) error
	Open(ctx context.Context, port string, id inventory.MigrationID) error
	Discard(ctx context.Context, port string, id inventory.MigrationID) error
}

// Journal is the VM's append-only memory of what cannot be taken back.
type Journal interface {
	Append(e handover.Entry) error
}

// PrepareRequest asks the target to get ready.
type PrepareRequest struct {
	Migration   inventory.MigrationID
	VM          inventory.VM
	Source      inventory.HostID
	SourceEpoch uint64
	DryRun      bool // admission only
}

// PrepareAnswer says what stands against a migration at the target, or that it is ready.
type PrepareAnswer struct {
	Reasons []string // then nothing was started
	Epoch   uint64
	Boot    string // of the target's kernel; empty from older agents
}

// ReleaseAnswer is the target's final word on a release.
type ReleaseAnswer struct {
	Running bool // false: returned, it never ran there
	Lost    bool // the target's host was rebooted: it may have run there and is gone
	Reason  string
	Resumed time.Time // QEMU's RESUME event, by the target's clock; zero when not known
}

// Answer is a target's final word on a discard, in the words of policy/handover, for faces that do not know that.
type Answer = handover.Answer

// The answers to a discard.
const (
	AnswerDiscarded = handover.AnswerDiscarded // it never ran there and never will
	AnswerRunning   = handover.AnswerRunning   // the target has the VM
	AnswerLost      = handover.AnswerLost      // the target's host was rebooted: it may have run there and is gone
)

// Outcome is how an end of a migration came out for its host.
type Outcome int

// The outcomes.
const (
	Interrupted Outcome = iota // the agent stops: the journal keeps the state, the next agent goes on
	Here                       // the VM runs on this host
	Away                       // the VM is the other host's, nothing of it is left here
	Nowhere                    // this host's copy was given up; a cold start may follow elsewhere
)

// Capabilities are what both QEMUs are told before the stream opens; both ends must agree (QEMU documentation,
// "Migration", "Capabilities").
//
// late-block-activate keeps the target from locking the images before cont: nobody locks them between the source's stop
// and the target's cont.
func Capabilities() map[string]bool {
	return map[string]bool{
		"events": true, "return-path": true, "pause-before-switchover": true, "late-block-activate": true, "validate-uuid": true,
	}
}

// Needed names the capabilities whose absence is a reason against a migration.
func Needed() []string {
	return []string{"return-path", "pause-before-switchover", "late-block-activate", "validate-uuid"}
}
