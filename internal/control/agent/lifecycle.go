package agent

import (
	"context"
	"log/slog"
	"path"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// startMax bounds how long QEMU may take to answer after it was started.
const startMax = 30 * time.Second

// quitMax bounds how long QEMU may take to flush and end before it is killed.
const quitMax = 10 * time.Second

// Start starts a stopped VM here.
func (a *Agent) Start(ctx context.Context, id inventory.VMID) (inventory.VM, error) {
	return a.change(ctx, "start", id, func(ctx context.Context, v *vm) error { return v.start(ctx) })
}

// Reset resets a running VM, as its reset button would.
func (a *Agent) Reset(ctx context.Context, id inventory.VMID) (inventory.VM, error) {
	return a.change(ctx, "reset", id, func(ctx context.Context, v *vm) error {
		if err := v.must(inventory.Running, inventory.Paused, inventory.Crashed); err != nil {
			return err
		}
		if v.process == nil {
			return fault.New(fault.Conflict, "it has no process: start it")
		}
		if v.stored.Status.State != inventory.Running {
			if err := v.mayRun(); err != nil {
				return err
			}
		}
		if err := v.process.QMP().Reset(ctx); err != nil {
			return err
		}
		if v.stored.Status.State == inventory.Running {
			return nil
		}
		return v.cont(ctx)
	})
}

// Pause stops a running VM's vCPUs. Pausing a paused VM is no error.
func (a *Agent) Pause(ctx context.Context, id inventory.VMID) (inventory.VM, error) {
	return a.change(ctx, "pause", id, func(ctx context.Context, v *vm) error {
		if err := v.must(inventory.Running, inventory.Paused); err != nil {
			return err
		}
		if err := v.pause(ctx); err != nil {
			return err
		}
		v.state(ctx, inventory.Paused, "on request")
		return nil
	})
}

// Resume lets a paused VM run on. Resuming a running VM is no error.
func (a *Agent) Resume(ctx context.Context, id inventory.VMID) (inventory.VM, error) {
	return a.change(ctx, "resume", id, func(ctx context.Context, v *vm) error {
		if err := v.must(inventory.Running, inventory.Paused); err != nil {
			return err
		}
		return v.cont(ctx)
	})
}

// Stop shuts a VM down. With force its power is cut; else the guest is asked and has the grace to follow: if it does not, that is an
// error of kind fault.Unavailable and the guest runs on. Stopping a stopped VM is no error.
func (a *Agent) Stop(ctx context.Context, id inventory.VMID, force bool, grace time.Duration) (inventory.VM, error) {
	v, err := a.own(id)
	if err != nil {
		return inventory.VM{}, err
	}
	stopped := inventory.VM{}
	err = a.tasks.Run(ctx, "vm.stop", string(id), v.record().Spec.Name, func(ctx context.Context, t *task.Task) (err error) {
		if !force {
			t.Progress(0, 0, "the guest was asked to shut down")
		}
		stopped, err = a.stop(ctx, v, force, grace)
		return err
	})
	return stopped, err
}

func (a *Agent) stop(ctx context.Context, v *vm, force bool, grace time.Duration) (inventory.VM, error) {
	name := "vm " + v.record().Spec.Name
	err := v.do(ctx, func(ctx context.Context) error { return v.stop(ctx, force) })
	if err != nil || force {
		return a.live(v.record()), fault.Wrap("stop", name, err)
	}
	within, done := context.WithTimeout(ctx, grace)
	defer done()
	button := time.After(buttonAfter(grace))
	for {
		v.mu.Lock()
		state, changed := v.stored.Status.State, v.changed
		v.mu.Unlock()
		if state == inventory.Stopped {
			return a.live(v.record()), nil
		}
		select {
		case <-changed:
		case <-button: // it may have been asked through its agent only
			if err := v.pressButton(within); err != nil {
				v.log.LogAttrs(ctx, slog.LevelDebug, "power button not pressed", slog.Any("err", err))
			}
		case <-within.Done():
			if ctx.Err() != nil { // the task was canceled, or the agent ends: nobody gave up on the guest
				return inventory.VM{}, fault.Wrap("stop", name, ctx.Err())
			}
			return inventory.VM{}, fault.Wrap("stop", name, fault.New(fault.Unavailable,
				"the guest did not shut down within %v and runs on: wait longer with --grace, or cut its power with --force", grace))
		}
	}
}

// Destroy removes a stopped VM, and its images on request.
func (a *Agent) Destroy(ctx context.Context, id inventory.VMID, deleteDisks bool) error {
	v, err := a.own(id)
	if err != nil {
		return err
	}
	name := v.record().Spec.Name
	return a.tasks.Run(ctx, "vm.destroy", string(id), name, func(ctx context.Context, _ *task.Task) error {
		return fault.Wrap("destroy", "vm "+name, v.do(ctx, func(ctx context.Context) error { return v.destroy(ctx, deleteDisks) }))
	})
}

// change runs f in the VM's loop and returns the VM as it is then.
func (a *Agent) change(ctx context.Context, op string, id inventory.VMID, f func(context.Context, *vm) error) (inventory.VM, error) {
	v, err := a.own(id)
	if err != nil {
		return inventory.VM{}, fault.Wrap(op, "", err)
	}
	err = a.tasks.Run(ctx, "vm."+op, string(id), v.record().Spec.Name, func(ctx context.Context, _ *task.Task) error {
		return fault.Wrap(op, "vm "+v.record().Spec.Name, v.do(ctx, func(ctx context.Context) error {
			if v.source != nil || v.target != nil {
				return errMigrating
			}
			if err := v.free(); err != nil {
				return err
			}
			return f(ctx, v)
		}))
	})
	return a.live(v.record()), err
}

// must refuses unless the VM is in one of the states, and says what to do first.
func (v *vm) must(states ...inventory.VMState) error {
	now := v.stored.Status.State
	switch {
	case slices.Contains(states, now):
		return nil
	case v.source != nil || v.target != nil:
		return errMigrating
	case slices.Contains(states, inventory.Stopped):
		return fault.New(fault.Conflict, "it is %v: stop it first", now)
	}
	return fault.New(fault.Conflict, "it is %v: start it first", now)
}

// errMigrating refuses what a VM on its way cannot do.
var errMigrating = fault.New(fault.Conflict, "it is migrating: wait, or end that with godwit migration cancel")

// start brings the VM up because somebody wants that, with a new generation. One that does not come up is wanted off again.
func (v *vm) start(ctx context.Context) error {
	if err := v.mayStart(ctx); err != nil {
		return err
	}
	if err := v.want(ctx, inventory.PowerOn); err != nil {
		return err
	}
	err := v.bringUp(ctx)
	if err != nil {
		undo, done := context.WithTimeout(context.WithoutCancel(ctx), quitMax)
		defer done()
		v.state(undo, inventory.Stopped, "it did not start: "+err.Error())
		_ = v.want(undo, inventory.PowerOff) // the error of the start is the one to tell
	}
	return err
}

// mayStart refuses what cannot be started here now, and makes room for what can.
func (v *vm) mayStart(ctx context.Context) error {
	switch v.stored.Status.State { //nolint:exhaustive // must looks at the others
	case inventory.Running:
		return fault.New(fault.Conflict, "it is running already")
	case inventory.Paused:
		return fault.New(fault.Conflict, "it is paused: let it run on with godwit vm resume")
	}
	if err := v.must(inventory.Stopped, inventory.Crashed); err != nil {
		return err
	}
	if v.stored.Spec.Template {
		return errTemplate
	}
	if v.process != nil { // it panicked: its QEMU is still there
		if err := v.end(ctx, true); err != nil {
			return err
		}
	}
	if v.agent.authority() < handover.AuthorityMargin {
		return v.agent.errNoAuthority()
	}
	self, err := v.agent.describe(ctx)
	if err != nil {
		return err
	}
	if err := v.agent.settled(v.stored); err != nil {
		return err
	}
	return fault.Refuse(fault.Incompatible, admission.Create(v.stored.Spec, self))
}

// bringUp starts the VM with the generation of its run record, which nobody has started it with: lock records, ports, QEMU with stopped vCPUs, and
// only then cont. Of one that does not come up nothing is left.
func (v *vm) bringUp(ctx context.Context) (err error) {
	a := v.agent
	v.state(ctx, inventory.Starting, "")
	defer func() {
		if err != nil {
			undo, done := context.WithTimeout(context.WithoutCancel(ctx), quitMax)
			defer done()
			if left := v.end(undo, true); left != nil { // a QEMU that stays has the images open, and is in the way of the next start
				v.log.LogAttrs(undo, slog.LevelWarn, "a vm that did not start does not end", slog.Any("err", left))
			}
		}
	}()
	if err := a.lock(v.stored, v.stored.Run.Generation); err != nil {
		return err
	}
	for _, port := range v.ports() {
		if err := a.Switch.AddPort(ctx, port); err != nil {
			return err
		}
	}
	process, err := a.startQEMU(ctx, v, false)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.process = process
	v.mu.Unlock()
	v.stands(ctx)
	v.attach(ctx)
	// Between our record and now another host may have made a higher one, or this one lost its authority: the last look at both is right
	// before the vCPUs run.
	if err := a.holds(v.stored, v.stored.Run.Generation); err != nil {
		return err
	}
	return v.cont(ctx)
}

// startQEMU starts the VM's process with stopped vCPUs.
func (a *Agent) startQEMU(ctx context.Context, v *vm, incoming bool) (*qemu.Process, error) {
	ctx, done := context.WithTimeout(ctx, startMax)
	defer done()
	plug, err := v.plugIn(v.stored.Spec.NICs, incoming)
	if err != nil {
		return nil, err
	}
	defer plug.close()
	firmware, err := a.firmware(v.stored.Spec)
	if err != nil {
		return nil, err
	}
	return qemu.Start(ctx, qemu.Config{
		Spec: v.stored.Spec, User: a.User, Cgroup: path.Join(a.Cgroup, string(a.Host()), string(v.id)),
		Env:   qemu.Env{RunDir: v.runDir(), Abilities: a.abilities, Incoming: incoming, File: a.file, Firmware: firmware, Ports: plug.sockets, Taps: plug.taps},
		Files: plug.files,
	})
}

// cont lets the vCPUs run.
func (v *vm) cont(ctx context.Context) error {
	if err := v.letRun(ctx, v.process); err != nil {
		return err
	}
	v.state(ctx, inventory.Running, "")
	return nil
}

// want stores whether the VM is wanted on; switching it on takes a new generation, whose lock records nobody has yet.
func (v *vm) want(ctx context.Context, power inventory.Power) error {
	run, err := v.agent.writer.UpdateRun(ctx, v.id, func(r *inventory.VMRun) error {
		if r.Owner != v.agent.Host() {
			return fault.New(fault.Conflict, "host %s owns it now", r.Owner)
		}
		if !r.Heir.IsZero() {
			return fault.New(fault.Conflict, "host %s is to take it over by migration %s: wait for its end", r.Heir.Host, r.Heir.Migration)
		}
		if power == inventory.PowerOn {
			r.Generation++
			r.Restored = 0 // the lock record of this generation is beyond every other
		}
		r.Wanted = power
		return nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.stored.Run = run
	v.mu.Unlock()
	return nil
}

// stop asks the guest to shut down, or cuts its power.
func (v *vm) stop(ctx context.Context, force bool) error {
	if v.stored.Status.State == inventory.Stopped {
		return nil
	}
	if v.source != nil || v.target != nil {
		return errMigrating
	}
	if force || v.process == nil || v.stored.Status.State == inventory.Crashed {
		if err := v.want(ctx, inventory.PowerOff); err != nil {
			return err
		}
		if err := v.end(ctx, force); err != nil {
			return err
		}
		v.state(ctx, inventory.Stopped, "on request")
		return nil
	}
	if v.stored.Status.State == inventory.Paused {
		return fault.New(fault.Conflict, "it is paused and cannot hear the request: resume it first, or cut its power with --force")
	}
	return v.askOff(ctx)
}

// end ends the VM's process and cleans up behind it.
func (v *vm) end(ctx context.Context, now bool) error {
	if v.process == nil {
		v.cleanUp(ctx)
		return nil
	}
	if !now {
		within, done := context.WithTimeout(ctx, quitMax)
		err := v.process.Quit(within)
		done()
		now = err != nil
	}
	if now {
		if err := v.process.Kill(ctx); err != nil {
			return err
		}
	}
	v.cleanUp(ctx)
	return nil
}

// destroy removes a stopped VM from the inventory and then what it left on disk.
func (v *vm) destroy(ctx context.Context, deleteDisks bool) error {
	if err := v.must(inventory.Stopped, inventory.Crashed); err != nil {
		return err
	}
	if err := v.free(); err != nil {
		return err
	}
	if err := v.agent.settled(v.stored); err != nil {
		return err
	}
	if err := v.agent.noClones(ctx, v.stored); err != nil {
		return err
	}
	if err := v.agent.mayGo(ctx, v.stored, deleteDisks); err != nil {
		return err
	}
	if err := v.end(ctx, true); err != nil {
		return err
	}
	if v.stored.Run.Wanted != inventory.PowerOff { // it crashed
		if err := v.want(ctx, inventory.PowerOff); err != nil {
			return err
		}
	}
	if err := v.agent.writer.DeleteVM(ctx, v.id, nil); err != nil {
		return err
	}
	v.gone = true
	return v.agent.forget(ctx, v.stored, deleteDisks)
}

// foundState translates what a QEMU says of itself into a VM's state, with the reason where there is one.
func foundState(s qmp.Status) (inventory.VMState, string) {
	switch s.State { //nolint:exhaustive // the rest is what QEMU calls some kind of paused
	case qmp.StateRunning:
		return inventory.Running, ""
	case qmp.StateGuestPanicked:
		return inventory.Crashed, "the guest panicked: godwit vm reset starts it again"
	case qmp.StateIOError:
		return inventory.Paused, "a disk failed (godwit vm resume tries again): is the datastore full or away?"
	}
	return inventory.Paused, "found " + string(s.State)
}
