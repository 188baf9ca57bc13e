package cluster

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
	"github.com/godwit-vm/godwit/internal/policy/ha"
)

// candidates says of each host that is up, stays, and runs VMs at all what stands against it as the VM's new host. For a VM that stays off its memory does not count.
func (p *pass) candidates(vm inventory.VM, off bool) []ha.Candidate {
	var all []ha.Candidate
	for _, h := range p.hosts {
		if p.life(h.ID) != ha.Living || p.leaving[h.ID] || h.Spec.Witness {
			continue
		}
		for _, g := range p.granted {
			if g.host == h.ID {
				h.Status.MemoryFree -= g.memory + admission.Overhead
				h.Status.VMs++
			}
		}
		c := ha.Candidate{Host: h.ID, Free: h.Status.MemoryFree, VMs: h.Status.VMs}
		if off {
			h.Status.MemoryFree = math.MaxInt64
		}
		c.Against = admission.Restart(vm, h)
		if h.ID == vm.Run.Owner && vm.Run.OwnerGaveUp() {
			c.Against = append(c.Against, string(h.ID)+" could not start it")
		}
		all = append(all, c)
	}
	return all
}

// askHeirs asks the living heirs of dead owners for their final word, several at once, and gives the VMs of those that discarded to others.
func (p *pass) askHeirs(ctx context.Context, vms []inventory.VM) {
	var mu sync.Mutex
	var discarded []inventory.VM
	var all errgroup.Group
	all.SetLimit(discardsMax)
	for _, vm := range vms {
		all.Go(func() error {
			within, done := context.WithTimeout(ctx, discardMax)
			defer done()
			heir := vm.Run.Heir
			gone, err := p.Heirs.Discard(within, heir.Host, heir.Migration, vm.Run.Owner, p.term.Number())
			if err != nil {
				p.Log.LogAttrs(ctx, slog.LevelWarn, "heir has not answered", slog.String("vm", vm.Spec.Name), slog.String("host", string(heir.Host)), slog.Any("err", err))
			}
			if gone {
				mu.Lock()
				defer mu.Unlock()
				discarded = append(discarded, vm)
			}
			return nil
		})
	}
	_ = all.Wait() // they return nil
	for _, vm := range discarded {
		c, err := p.kase(ctx, vm.Run, true)
		if err == nil {
			if d := ha.Decide(c); d.Kind == ha.Restart || d.Kind == ha.Release {
				_, err = p.give(ctx, vm, c, d)
			}
		}
		if err != nil {
			p.Log.LogAttrs(ctx, slog.LevelWarn, "vm not dealt with", slog.String("vm", vm.Spec.Name), slog.Any("err", err))
		}
	}
}

// endMigrations ends the records of migrations whose source is dead, once nobody waits for their outcome: their VM could not
// migrate again otherwise.
func (p *pass) endMigrations(ctx context.Context) error {
	if !slices.ContainsFunc(p.hosts, func(h inventory.Host) bool { return p.life(h.ID) == ha.Dead }) {
		return nil
	}
	all, err := p.term.Store().Migrations(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Status.Phase.Final() || p.life(m.Spec.Source) != ha.Dead {
			continue
		}
		vm, err := p.term.Store().VM(ctx, string(m.Spec.VM))
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if err == nil && (vm.Run.Heir.Migration == m.ID || vm.Run.Owner == m.Spec.Source) {
			continue
		}
		status := m.Status
		status.Phase, status.Reason, status.Ended = inventory.Failed, string(m.Spec.Source)+" died in the middle of it", time.Now()
		if err == nil && vm.Run.Owner == m.Spec.Target && !vm.Place.Restart.Gave(vm.Run) {
			status.Phase, status.Reason = inventory.Completed, "" // the heir had it by then
		}
		if err := p.term.Writer().PutMigrationStatus(ctx, m.ID, status); err != nil && !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return nil
}
