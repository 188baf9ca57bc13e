package agent

import (
	"context"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Warden is the host's warden, as the agent speaks to it: what of the authority it must know to end VMs that the agent does not.
// control/warden's Line implements it. Each call returns when the warden has taken the word, or with an error when it has not in time.
type Warden interface {
	// Authority says until when this host's authority lasts, under which fence count.
	Authority(ctx context.Context, fences uint64, until authority.Moment) error
	// Shorten says that it lasts no longer than until.
	Shorten(ctx context.Context, until authority.Moment) error
	// GiveUp says that this host's epoch is over.
	GiveUp(ctx context.Context) error
	// VM says who arbitrates the storage of a VM that has a QEMU here, and whether its vCPUs stand: after QEMU has acknowledged that, and
	// before it lets them run.
	VM(ctx context.Context, id inventory.VMID, arbiter authority.Arbiter, stopped bool) error
	// Gone says that a VM has no QEMU here any more.
	Gone(ctx context.Context, id inventory.VMID) error
	// Cleared returns when nothing lives any more of what was here under an earlier fence count. The first Authority comes before it.
	Cleared(ctx context.Context) error
	// Unwatched says that the store has this host's word that nobody can fence it (a renewal with FencedByNobody was acknowledged): with that the
	// warden takes its watchdog off when it ends in order. Without it, it ends only when every VM on lease-arbitrated storage is frozen
	// after a stop, or dead.
	Unwatched(ctx context.Context) error
	// Left returns the authority that the warden knows of, 0 for none: what this agent's predecessor had.
	Left() (fences uint64, until authority.Moment)
	// Fencing says how others can know that this host's VMs are dead when it falls silent. It may change from one call to the next.
	Fencing() inventory.Fencing
}

// authority is how far this host may still act for its VMs. A single store member without fencing cannot take it away, so it
// has no end yet; the hand-over asks for it all the same.
func (a *Agent) authority() time.Duration { return time.Hour }
