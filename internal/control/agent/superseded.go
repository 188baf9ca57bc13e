package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// supersededEvery is how often a host without authority looks at the lock records of the VMs that stand here.
const supersededEvery = time.Second

// sight is the highest lock record of a VM when this host first looked after the stop.
type sight struct {
	highest inventory.Generation
	ours    bool // this host's; the target of a migration that is open may make one more
}

// keepSuperseded ends VMs that stand here for want of authority and that another host has begun to run, until ctx ends. A host that is cut off from
// the store may reach the storage still, and there a frozen QEMU holds the locks of its images: the new owner's QEMU could not open them for as long
// as this host is cut off. The new owner's lock record says that this one never runs on.
//
// It has a loop of its own, since it waits for storage, and nothing that stops VMs in time may.
func (a *Agent) keepSuperseded(ctx context.Context) error {
	standing := map[inventory.VMID]sight{}
	for {
		stopped, changed, over := a.Authority.standstill()
		if over != nil {
			return nil //nolint:nilerr // keepStandstill ends them all, and says why
		}
		var again <-chan time.Time
		if stopped {
			a.endSuperseded(ctx, standing)
			again = time.After(supersededEvery)
			changed = nil // renewals that fail are no reason to look
		} else {
			clear(standing)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// endSuperseded looks once at every VM that stands.
func (a *Agent) endSuperseded(ctx context.Context, standing map[inventory.VMID]sight) {
	a.mu.Lock()
	vms := slices.Collect(maps.Values(a.vms))
	a.mu.Unlock()
	for _, v := range vms {
		v.mu.Lock()
		moving, vm := v.source != nil, v.stored
		v.mu.Unlock()
		p := v.qemu()
		if p == nil || v.arbiter() == authority.StorageArbitrates || !v.wasHalted() {
			delete(standing, v.id)
			continue
		}
		highest, host := a.highestLock(vm)
		was, known := standing[v.id]
		now := sight{highest, host == a.Host()}
		switch {
		case !known, moving && was.ours && highest > was.highest:
			// The record of a migration's target says nothing yet: the hand-over's rules decide that one. The next one is of a new owner.
			standing[v.id] = now
			continue
		case highest <= was.highest, now.ours:
			continue
		}
		v.log.LogAttrs(ctx, slog.LevelWarn, "ends: another host has taken it over while this one had no authority",
			slog.String("host", string(host)), slog.Uint64("generation", uint64(highest)))
		if err := p.Kill(ctx); err != nil { // tried again at the next look
			v.log.LogAttrs(ctx, slog.LevelWarn, "a vm that this host has lost does not end", slog.Any("err", err))
		}
	}
}

// highestLock returns the highest lock record of a VM on any of its datastores, and whose it is; 0 for none. A datastore that cannot be read says
// nothing.
func (a *Agent) highestLock(vm inventory.VM) (highest inventory.Generation, host inventory.HostID) {
	for _, id := range datastores(vm.Spec) {
		ds := a.stores[id]
		if ds == nil {
			continue
		}
		records, err := ds.Locks(vm.ID)
		if err != nil || len(records) == 0 {
			continue
		}
		if last := records[len(records)-1]; last.Generation > highest {
			highest, host = last.Generation, last.Host
		}
	}
	return highest, host
}
