package agent

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// adoptMax bounds how long one QEMU may take to answer an agent that has just started.
const adoptMax = 10 * time.Second

// adopt begins a loop for every VM that this host owns, is heir of, has a process of, or is the source of in a migration that is not over: nobody else
// brings that to its end. The journal, then the store, then QEMU say where each stands (docs/architecture.md, "The hand-over rules").
func (a *Agent) adopt(ctx context.Context) error {
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return err
	}
	migrations, err := a.Store.Migrations(ctx)
	if err != nil {
		return err
	}
	leaves := map[inventory.VMID]bool{}
	a.mu.Lock()
	for _, m := range migrations {
		if !m.Status.Phase.Final() && m.Spec.Source == a.Host() {
			leaves[m.Spec.VM] = true
		}
		a.before[m.ID] = !m.Status.Phase.Final()
		if a.before[m.ID] && (a.rebooted || a.Authority.was.cut[m.ID]) {
			a.cut[m.ID] = true
		}
	}
	cut := maps.Clone(a.cut)
	a.mu.Unlock()
	known := map[inventory.VMID]bool{}
	for _, stored := range all {
		known[stored.ID] = true
		a.Starting("looks for vm " + stored.Spec.Name)
		process := a.endLost(ctx, stored, a.adoptProcess(ctx, stored.ID))
		mine := stored.Run.Owner == a.Host() || stored.Run.Heir.Host == a.Host()
		if !mine && process == nil && !leaves[stored.ID] {
			continue
		}
		if err := a.adoptVM(ctx, stored, process); err != nil {
			a.Log.LogAttrs(ctx, slog.LevelError, "vm not adopted", slog.String("vm", string(stored.ID)), slog.Any("err", err))
		}
	}
	if err := a.Authority.settle(cut); err != nil {
		return err
	}
	dirs, err := os.ReadDir(filepath.Join(a.RunDir, "vms"))
	if err != nil {
		return fault.New(fault.Internal, "run directory: %w", err)
	}
	for _, d := range dirs {
		if id := inventory.VMID(d.Name()); !known[id] {
			// Never killed for want of a record: a store may have been restored from a backup.
			a.unknown(ctx, id)
		}
	}
	a.sweepPorts(ctx)
	return nil
}

// sweepPorts removes the switch ports of VMs that are not here: the former agent was killed between the end of a VM's QEMU and
// that of its ports, or its incoming QEMU ended with it. A reserved one that stayed would refuse every later migration.
func (a *Agent) sweepPorts(ctx context.Context) {
	ports, err := a.Switch.Ports(ctx)
	if err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "switch ports not looked through", slog.Any("err", err))
		return
	}
	for _, p := range ports {
		id := vmOfPort(p.ID)
		if id == "" || a.lookup(id) != nil {
			continue
		}
		switch p.Mode {
		case vnet.ModeReserved:
			err = a.Switch.Discard(ctx, p.ID, p.Migration)
		case vnet.ModeForwarding:
			err = a.Switch.Commit(ctx, p.ID, p.Migration) // it goes when its last frames have
		case vnet.ModeNormal, vnet.ModeHeld:
			err = a.Switch.RemovePort(ctx, p.ID)
		}
		if err != nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "switch port of a vm elsewhere stays", slog.String("port", p.ID), slog.Any("err", err))
		}
	}
}

// adoptProcess finds the VM's QEMU, nil when there is none.
func (a *Agent) adoptProcess(ctx context.Context, id inventory.VMID) *qemu.Process {
	dir := a.runDirOf(id)
	if _, err := os.Stat(string(dir)); err != nil {
		return nil
	}
	within, done := context.WithTimeout(ctx, adoptMax)
	defer done()
	process, err := qemu.Adopt(within, dir)
	switch {
	case err == nil:
		a.Log.LogAttrs(ctx, slog.LevelInfo, "adopted", slog.String("vm", string(id)), slog.Int("pid", process.PID()))
	case process != nil:
		a.Log.LogAttrs(ctx, slog.LevelError, "adopted, but its monitor is silent", slog.String("vm", string(id)), slog.Any("err", err))
	default:
		a.Log.LogAttrs(ctx, slog.LevelWarn, "its process is gone", slog.String("vm", string(id)), slog.Any("err", err))
		if err := qemu.Remove(dir); err != nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "clean-up is incomplete", slog.Any("err", err))
		}
	}
	return process
}

// endLost ends a QEMU that was here when the host was fenced, unless its storage arbitrates: another host may run the VM by now. It returns what
// is left of it, nil when nothing is. The warden has done so before where there is one.
func (a *Agent) endLost(ctx context.Context, stored inventory.VM, process *qemu.Process) *qemu.Process {
	if process == nil || !a.Authority.cast || a.arbiterOf(stored.Spec) == authority.StorageArbitrates {
		return process
	}
	a.Log.LogAttrs(ctx, slog.LevelWarn, "ending a vm that was here when this host was fenced", slog.String("vm", string(stored.ID)))
	if err := end(ctx, process); err != nil {
		a.Log.LogAttrs(ctx, slog.LevelError, "it does not end", slog.String("vm", string(stored.ID)), slog.Any("err", err))
		return process
	}
	return nil
}

// adoptVM begins the VM's loop in the place where the former agent left it.
func (a *Agent) adoptVM(ctx context.Context, stored inventory.VM, process *qemu.Process) error {
	process, err := a.endTaken(ctx, stored, process)
	if err != nil {
		return err
	}
	if process != nil && process.QMP() == nil {
		// Its guest may well run while the monitor is silent, because a datastore stands still, say. It is never killed for that;
		// until it answers nothing can be asked of it, and calls are refused.
		a.spawn(context.WithoutCancel(ctx), func(ctx context.Context) { a.adoptLater(ctx, stored.ID, process) })
		return nil
	}
	if stored.Run.Restored != 0 && process != nil {
		taken, err := a.takeRestored(ctx, stored)
		if err != nil {
			return err
		}
		stored = taken
	}
	if process, err = a.endLeft(ctx, stored, process); err != nil {
		return err
	}
	run := stored.Run
	id := run.Heir.Migration
	if id == "" {
		id = a.lastMigration(ctx, stored.ID)
	}
	var m inventory.Migration
	if id != "" {
		var err error
		if m, err = a.Store.Migration(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	open := m.ID != "" && (!run.Heir.IsZero() || !m.Status.Phase.Final())
	switch {
	case open && m.Spec.Source == a.Host():
		return a.adoptSource(ctx, stored, process, m)
	case open && m.Spec.Target == a.Host() && run.Owner != a.Host():
		return a.adoptTarget(ctx, stored, process, m)
	case run.Owner == a.Host():
		return a.adoptOwned(ctx, stored, process)
	}
	if process == nil {
		return nil // it was ended above, or ended by itself meanwhile
	}
	// Another host's VM: what is left here was given up and must not run again.
	a.Log.LogAttrs(ctx, slog.LevelWarn, "ending a copy that belongs elsewhere", slog.String("vm", string(stored.ID)), slog.String("owner", string(run.Owner)))
	return end(ctx, process)
}

// end kills a QEMU that was found, and removes what it leaves.
func end(ctx context.Context, process *qemu.Process) error {
	if err := process.Kill(ctx); err != nil {
		return err
	}
	return process.Cleanup()
}

// adoptAgain is the pause between two tries to reach a silent monitor.
const adoptAgain = 5 * time.Second

// adoptLater tries to reach the monitor of a QEMU that was found silent until it answers or has ended, and then adopts the VM.
func (a *Agent) adoptLater(ctx context.Context, id inventory.VMID, process *qemu.Process) {
	for {
		select {
		case <-ctx.Done():
			process.Release()
			return
		case <-process.Done():
			if err := process.Cleanup(); err != nil {
				a.Log.LogAttrs(ctx, slog.LevelWarn, "clean-up is incomplete", slog.String("vm", string(id)), slog.Any("err", err))
			}
			process = nil
		case <-time.After(adoptAgain):
			within, done := context.WithTimeout(ctx, adoptMax)
			err := process.Redial(within)
			done()
			if err != nil {
				continue
			}
		}
		stored, err := a.Store.VM(ctx, string(id))
		if err == nil {
			err = a.adoptVM(ctx, stored, process)
		}
		if err != nil {
			a.Log.LogAttrs(ctx, slog.LevelError, "vm not adopted", slog.String("vm", string(id)), slog.Any("err", err))
		}
		return
	}
}

// lastMigration is the migration that the VM's journal speaks of last, "" when it is empty.
func (a *Agent) lastMigration(ctx context.Context, id inventory.VMID) inventory.MigrationID {
	if m, err := a.Store.ActiveMigration(ctx, id); err == nil && m != "" {
		return m
	}
	lines, err := a.journal(id).read()
	if err != nil || len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1].Migration
}

// adoptOwned begins the loop of a VM that is this host's and not on its way.
func (a *Agent) adoptOwned(ctx context.Context, stored inventory.VM, process *qemu.Process) error {
	status := inventory.VMStatus{State: inventory.Stopped, Host: a.Host(), Since: time.Now()}
	var revival *revival
	if process != nil {
		found, err := process.QMP().Status(ctx)
		if err != nil {
			return err
		}
		status.State, status.Detail = foundState(found)
		if status.State == inventory.Paused && halted(a.runDirOf(stored.ID)) {
			status.Detail = haltedDetail
		}
		status.PID = process.PID()
		if found.State == qmp.StateShutdown {
			status.Detail = "the guest shut down while the agent was away"
		}
	} else if r, ok := a.lostHere(stored); ok {
		revival = r
		status.State, status.Detail = inventory.Crashed, r.why
	} else if stored.Run.Wanted == inventory.PowerOn {
		status.State, status.Detail = inventory.Crashed, "its process ended while the agent was away: godwit vm start starts it again"
	}
	if stored.Status.State == status.State {
		status.Since = stored.Status.Since
	}
	if e, ok := stateEvent(stored, stored.Status.State, status.State, status.Detail); ok {
		a.tasks.Event(ctx, e)
	}
	stored.Status = status
	v := a.begin(ctx, stored, func(v *vm) { v.process, v.revival = process, revival })
	if process != nil {
		v.takeIn(ctx, process)
		v.upTaps(ctx)
		if err := v.do(ctx, func(ctx context.Context) error { v.mendSoon(ctx, status.State); return nil }); err != nil {
			return err
		}
	}
	if process != nil && status.Detail != "" && status.State == inventory.Paused {
		return v.do(ctx, func(ctx context.Context) error {
			if found, err := v.process.QMP().Status(ctx); err == nil && found.State == qmp.StateShutdown {
				v.powerOff(ctx, status.Detail)
			}
			return nil
		})
	}
	return nil
}

// adoptSource goes on with a migration that leaves here.
func (a *Agent) adoptSource(ctx context.Context, stored inventory.VM, process *qemu.Process, m inventory.Migration) error {
	q := handover.QEMUGone
	if process != nil {
		status, migration, err := standing(ctx, process)
		if err != nil {
			return err
		}
		switch {
		case status.State == qmp.StatePostMigrate, migration.Status == qmp.MigrationCompleted && !status.Running:
			q = handover.QEMUCompleted
		case migration.Status == "" || migration.Status == qmp.MigrationNone || migration.Status.Ended():
			q = handover.QEMURuns
		default:
			q = handover.QEMUMigrates
		}
	}
	attempt := handover.RestoreAttempt(m, stored)
	found := attempt.SourceFound(stored.Run, q, a.rebootedIn(m, stored.Run.Heir))
	target, err := a.Store.Host(ctx, m.Spec.Target)
	if err != nil {
		return err
	}
	v := a.begin(ctx, stored, func(v *vm) { v.process = process })
	v.takeIn(ctx, process)
	return v.do(ctx, func(ctx context.Context) error { return v.restoreSource(ctx, m, attempt, stored, target, found) })
}

// adoptTarget goes on with a migration that arrives here.
func (a *Agent) adoptTarget(ctx context.Context, stored inventory.VM, process *qemu.Process, m inventory.Migration) error {
	q, err := arrived(ctx, process)
	if err != nil {
		return err
	}
	lines, err := a.journal(stored.ID).read()
	if err != nil {
		return err
	}
	attempt := handover.RestoreAttempt(m, stored)
	found := attempt.TargetFound(stored.Run, q, a.rebootedIn(m, stored.Run.Heir))
	var target *migrate.Target
	v := a.begin(ctx, stored, func(v *vm) {
		target = migrate.RestoreTarget(v.targetConfig(attempt), lines, process)
		v.target = target
		v.stored.Status = inventory.VMStatus{State: inventory.Migrating, Host: a.Host()}
		a.incoming[m.ID] = &arrival{target: target, source: m.Spec.Source}
	})
	v.takeIn(ctx, process)
	v.arrive(ctx, target, func(ctx context.Context) migrate.Outcome { return target.Restore(ctx, found) })
	return nil
}

// arrived says how far the incoming QEMU of a migration is, if there is one.
func arrived(ctx context.Context, process *qemu.Process) (handover.QEMU, error) {
	if process == nil {
		return handover.QEMUGone, nil
	}
	status, migration, err := standing(ctx, process)
	switch {
	case err != nil:
		return "", err
	case status.State == qmp.StateInMigrate:
		return handover.QEMUIncoming, nil
	case !status.Running && (status.State == qmp.StatePaused || status.State == qmp.StatePrelaunch) && migration.Status == qmp.MigrationCompleted:
		return handover.QEMULoaded, nil
	case status.State == qmp.StatePrelaunch:
		return handover.QEMUIncoming, nil
	}
	return handover.QEMURuns, nil
}

// endLeft ends what a migration left of a VM that the leader has given to this host since, and returns what is left of it then. A QEMU that stands for want of
// authority only has run here, and is the VM's own.
func (a *Agent) endLeft(ctx context.Context, stored inventory.VM, process *qemu.Process) (*qemu.Process, error) {
	if process == nil || stored.Run.Owner != a.Host() || halted(a.runDirOf(stored.ID)) {
		return process, nil
	}
	q, err := arrived(ctx, process)
	if err != nil || !handover.LeftBehind(stored, q) {
		return process, err
	}
	a.Log.LogAttrs(ctx, slog.LevelWarn, "ending what a migration left of a vm that is to start here", slog.String("vm", string(stored.ID)))
	if err := end(ctx, process); err != nil {
		return process, err
	}
	return nil, nil
}

// standing asks a QEMU what it does and where its migration is.
func standing(ctx context.Context, process *qemu.Process) (qmp.Status, qmp.Migration, error) {
	status, err := process.QMP().Status(ctx)
	if err != nil {
		return qmp.Status{}, qmp.Migration{}, err
	}
	migration, err := process.QMP().Migration(ctx)
	return status, migration, err
}

// rebootedIn reports whether this host was booted while the migration was open: then the journal of it is lost, and so is every
// process. It compares kernel boot ids, no clocks. That the journal is empty does not say it: one from before the boot may have said that the VM was
// released. So it stays true for every later agent of this boot, unless this host was named heir in it.
func (a *Agent) rebootedIn(m inventory.Migration, heir inventory.Heir) bool {
	if heir.Migration == m.ID && heir.Host == a.Host() && heir.BootID != "" {
		return heir.Booted(a.Authority.boot)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cut[m.ID]
}
