package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/journal"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// MigrateVM is a request to move a VM that runs here.
type MigrateVM struct {
	VM          inventory.VMID
	Target      inventory.HostID
	DryRun      bool
	Bandwidth   inventory.BytesPerSecond
	DowntimeMax time.Duration
}

// Migrate admits a migration, records it and begins it; a refusal carries every reason. A dry run stops after admission and
// returns the zero Migration.
func (a *Agent) Migrate(ctx context.Context, want MigrateVM) (inventory.Migration, error) {
	vm, err := a.VM(ctx, string(want.VM))
	if err != nil {
		return inventory.Migration{}, err
	}
	name := "vm " + vm.Spec.Name
	if want.Bandwidth < 0 || want.DowntimeMax < 0 {
		return inventory.Migration{}, fault.Wrap("migrate", name, fault.New(fault.Invalid, "bandwidth and pause cannot be negative"))
	}
	if want.DryRun {
		_, err := a.beginMigration(ctx, want, vm)
		return inventory.Migration{}, fault.Wrap("migrate", name, err)
	}
	return a.migrateTask(ctx, vm, func(ctx context.Context) (inventory.Migration, error) {
		m, err := a.beginMigration(ctx, want, vm)
		return m, fault.Wrap("migrate", name, err)
	})
}

// beginMigration admits, records and begins a migration, unless an earlier execution of the same request did.
func (a *Agent) beginMigration(ctx context.Context, want MigrateVM, vm inventory.VM) (inventory.Migration, error) {
	m := inventory.Migration{ID: inventory.MigrationID(task.ID(ctx, "mig-")), Spec: inventory.MigrationSpec{
		VM: vm.ID, VMName: vm.Spec.Name, Source: a.Host(), Target: want.Target, Bandwidth: want.Bandwidth,
		DowntimeMax: want.DowntimeMax, Requested: time.Now(), By: caller(ctx),
	}}
	if task.TakenOver(ctx) {
		if found, err := a.Migration(ctx, m.ID); err == nil || !fault.Is(err, fault.NotFound) {
			return found, err
		}
	}
	reasons, err := a.admit(ctx, m, vm)
	if err != nil {
		return inventory.Migration{}, err
	}
	if len(reasons) > 0 {
		return inventory.Migration{}, fault.Refuse(fault.Incompatible, reasons)
	}
	if want.DryRun {
		return inventory.Migration{}, nil
	}
	if err := a.writer.CreateMigration(ctx, m); err != nil {
		return inventory.Migration{}, err
	}
	if err := a.drive(ctx, m); err != nil {
		a.abandon(ctx, m, err.Error())
		return m, err
	}
	return m, nil
}

// abandon ends the record of a migration that never began.
func (a *Agent) abandon(ctx context.Context, m inventory.Migration, why string) {
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer done()
	status := inventory.MigrationStatus{Phase: inventory.Failed, Reason: why, Ended: time.Now()}
	if err := a.writer.PutMigrationStatus(undo, m.ID, status); err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "migration record not ended yet", slog.String("migration", string(m.ID)), slog.Any("err", err))
	}
}

// admit asks the target what stands against the migration. A target that cannot be asked is judged by what the store knows of it.
func (a *Agent) admit(ctx context.Context, m inventory.Migration, vm inventory.VM) ([]string, error) {
	self, err := a.describe(ctx)
	if err != nil {
		return nil, err
	}
	facts := admission.Facts{VM: vm, Source: self, Asked: m.Spec.Target, SourceLacks: a.lacks()}
	facts.Target, err = a.Store.Host(ctx, m.Spec.Target)
	if err != nil {
		return nil, err
	}
	if m.Spec.Target != a.Host() {
		within, done := context.WithTimeout(ctx, admitMax)
		defer done()
		ready, err := far{a, facts.Target}.Prepare(within, migrate.PrepareRequest{
			Migration: m.ID, VM: vm, Source: a.Host(), SourceEpoch: a.writer.Epoch(), DryRun: true,
		})
		if err == nil {
			return ready.Reasons, nil
		}
		facts.Silent = err.Error()
	}
	return admission.Check(facts), nil
}

// admitMax bounds a target's answer to whether it could take a VM; its first one may wait for the correctness probe.
const admitMax = 60 * time.Second

// lacks names the migration abilities that the own QEMU does not have.
func (a *Agent) lacks() []string {
	var missing []string
	for _, name := range migrate.Needed() {
		if !slices.Contains(a.abilities.Capabilities, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// drive begins a recorded migration of a VM that runs here, unless it is being driven already.
func (a *Agent) drive(ctx context.Context, m inventory.Migration) error {
	v, err := a.own(m.Spec.VM)
	if err != nil {
		return err
	}
	target, err := a.Store.Host(ctx, m.Spec.Target)
	if err != nil {
		return err
	}
	fresh, err := a.Store.VM(ctx, string(m.Spec.VM))
	if err != nil {
		return err
	}
	return v.do(ctx, func(ctx context.Context) error {
		if v.source != nil && v.source.Migration.ID == m.ID {
			return nil
		}
		if v.source != nil || v.target != nil || v.process == nil {
			return fault.New(fault.Conflict, "it is %v and cannot begin to migrate", v.stored.Status.State)
		}
		if err := v.whole(ctx); err != nil {
			return err
		}
		if err := journal.Remove(a.journal(v.id).path); err != nil { // of finished migrations
			return err
		}
		fresh.Status = v.snapshot() // with the addresses that the guest is known by
		s := migrate.NewSource(v.sourceConfig(m, handover.NewAttempt(m, fresh.Run), fresh, target))
		v.depart(ctx, s, s.Run)
		return nil
	})
}

// sourceConfig gathers what a Source works with.
func (v *vm) sourceConfig(m inventory.Migration, attempt handover.Attempt, stored inventory.VM, target inventory.Host) migrate.SourceConfig {
	a := v.agent
	return migrate.SourceConfig{
		Migration: m, Attempt: attempt, VM: stored, Epoch: a.writer.Epoch(), Process: v.process, Ports: v.portIDs(), Switch: ports{a},
		Records: records{a}, Far: far{a, target}, Journal: a.journal(v.id), Authority: a.authority,
		Cont: func(ctx context.Context) error { return v.letRun(ctx, v.qemu()) },
		Free: func(context.Context) error {
			if v.process == nil {
				return nil
			}
			return v.process.Cleanup()
		},
		Log: v.log.With(slog.String("migration", string(m.ID))),
	}
}

// depart runs a Source beside the loop. The switch ports are the Source's until it ends.
func (v *vm) depart(ctx context.Context, s *migrate.Source, run func(context.Context) migrate.Outcome) {
	v.mu.Lock()
	v.source = s
	v.mu.Unlock()
	if !v.agent.spawn(context.WithoutCancel(ctx), func(ctx context.Context) { v.moved <- run(ctx) }) {
		v.moved <- migrate.Interrupted
	}
	// The target starts its QEMU while the store takes this.
	v.state(ctx, inventory.Migrating, "to "+string(s.Migration.Spec.Target)+" by "+string(s.Migration.ID))
}

// afterMigration goes on with what a migration left: the VM here, or nothing.
func (v *vm) afterMigration(ctx context.Context, outcome migrate.Outcome) {
	v.mu.Lock()
	source, target := v.source, v.target
	v.source, v.target = nil, nil
	if target != nil && v.process == nil {
		v.process = target.Process()
	}
	v.mu.Unlock()
	if source != nil {
		v.settle(ctx, source)
	}
	switch outcome {
	case migrate.Interrupted:
		v.moved <- outcome // for leave: ctx has ended
		v.mu.Lock()
		v.source, v.target = source, target
		v.mu.Unlock()
		<-ctx.Done()
	case migrate.Here:
		v.stay(ctx, target)
	case migrate.Away:
		v.gone = true
		if source == nil {
			break // it never was ours: the records below the own one are those of the host that it runs on
		}
		if err := v.agent.unlock(v.stored); err != nil {
			v.log.LogAttrs(ctx, slog.LevelDebug, "old lock records stay", slog.Any("err", err))
		}
	case migrate.Nowhere:
		v.cleanUp(ctx)
		v.state(ctx, inventory.Crashed, "its memory was lost in a migration: godwit vm start starts it again")
	}
}

// stay takes a VM back into normal life, after a migration that brought it or did not take it away.
func (v *vm) stay(ctx context.Context, target *migrate.Target) {
	within, done := context.WithTimeout(ctx, storeTimeout)
	if stored, err := v.agent.Store.VM(within, string(v.id)); err == nil {
		v.mu.Lock()
		v.stored.Run = stored.Run
		v.mu.Unlock()
	}
	done()
	if v.process == nil {
		v.state(ctx, inventory.Crashed, "its process ended during a migration: godwit vm start starts it again")
		return
	}
	if target != nil {
		v.attach(ctx)
	}
	select {
	case <-v.process.Done():
		v.afterExit(ctx)
		return
	default:
	}
	status, err := v.process.QMP().Status(ctx)
	if err != nil {
		v.state(ctx, inventory.Unknown, err.Error())
		return
	}
	state, detail := v.found(status)
	v.state(ctx, state, detail)
	v.mendSoon(ctx, state)
}

// settle writes a finished migration's last status until the store takes it: it must not stay unfinished there.
func (v *vm) settle(ctx context.Context, s *migrate.Source) {
	status, _ := s.Status()
	if !status.Phase.Final() {
		return
	}
	id := s.Migration.ID
	v.agent.spawn(ctx, func(ctx context.Context) {
		for {
			within, done := context.WithTimeout(ctx, storeTimeout)
			err := v.agent.writer.PutMigrationStatus(within, id, status)
			done()
			if err == nil || fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
}

// restoreSource goes on with a migration that an earlier agent of this host drove.
func (v *vm) restoreSource(
	ctx context.Context, m inventory.Migration, attempt handover.Attempt, stored inventory.VM, target inventory.Host, found handover.SourceEvent,
) error {
	c := v.sourceConfig(m, attempt, stored, target)
	lines, err := v.agent.journal(v.id).read()
	if err != nil {
		return err
	}
	s := migrate.RestoreSource(c, lines)
	v.depart(ctx, s, func(ctx context.Context) migrate.Outcome { return s.Restore(ctx, found) })
	return nil
}
