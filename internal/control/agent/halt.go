package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

const (
	// haltMax bounds stopping one VM, or letting it run: a QEMU that does not answer is the warden's to end. Authority lasts longer than that
	// when a VM is let run (handover.AuthorityMargin).
	haltMax = time.Second
	// haltsMax bounds the VMs that are stopped at the same time. It is more than most hosts have, so that QEMUs that hang do not keep the others
	// waiting.
	haltsMax = 128
	// haltAgain is the pause before those are tried again that did not follow. A frozen QEMU thaws within it.
	haltAgain = 200 * time.Millisecond
	// pauseMax bounds a pause that somebody wants. QEMU flushes the disks before it answers.
	pauseMax = 10 * time.Second
)

// haltedDetail is what the status of a VM says that stands for want of authority.
const haltedDetail = "stopped for want of authority: the store does not answer; it runs on when this host's authority is back"

// vcpus is the one place where a VM's vCPUs are let run, and where they are stopped for want of authority. Whoever does either holds mu, so that a
// stop never comes between somebody's look at the authority and the cont that follows.
type vcpus struct {
	mu     sync.Mutex
	told   bool              // the warden knows of the VM
	stands bool              // the warden knows that the vCPUs stand
	halted bool              // they stood for want of authority, and would run otherwise
	as     authority.Arbiter // as the warden knows it
}

// errNoAuthority refuses what would let a VM run.
func (a *Agent) errNoAuthority() error {
	if why := a.Authority.trouble(); why != nil {
		return fault.New(fault.Unavailable, "host %s has no authority to run VMs: try again when the store answers it: %w", a.Host(), why)
	}
	return fault.New(fault.Unavailable, "host %s has no authority to run VMs right now: try again in a few seconds", a.Host())
}

// authority is how far this host may still act for its VMs.
func (a *Agent) authority() time.Duration { return a.Authority.Left() }

// mayRun refuses to let the VM run when the authority, or the storage in its place, does not allow it.
func (v *vm) mayRun() error {
	if v.agent.authority() < handover.AuthorityMargin && v.arbiter() == authority.LeaseArbitrates {
		return v.agent.errNoAuthority()
	}
	return nil
}

// letRun lets the vCPUs of the VM's QEMU run, after a last look at the authority, and after the warden was told.
func (v *vm) letRun(ctx context.Context, p *qemu.Process) error {
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	return v.letRunHeld(ctx, p)
}

// letRunHeld is letRun for who holds vcpus.mu.
func (v *vm) letRunHeld(ctx context.Context, p *qemu.Process) error {
	if err := v.mayRun(); err != nil {
		return err
	}
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	if err := v.tellWarden(within, false); err != nil {
		return err
	}
	if p == nil || p.QMP() == nil {
		return fault.New(fault.Unavailable, "its monitor does not answer")
	}
	if err := p.QMP().Cont(within); err != nil {
		return err
	}
	v.setHalted(ctx, false)
	return nil
}

// pause stops the vCPUs because somebody wants that: they stand until somebody wants them to run. A QEMU that hangs is asked again and again, since
// nobody may hold the lock for longer than haltMax.
func (v *vm) pause(ctx context.Context) error {
	within, done := context.WithTimeout(ctx, pauseMax)
	defer done()
	for {
		err := v.pauseOnce(within)
		if err == nil || !errors.Is(err, context.DeadlineExceeded) || within.Err() != nil {
			return err
		}
	}
}

func (v *vm) pauseOnce(ctx context.Context) error {
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	conn := v.process.QMP()
	if conn == nil {
		return fault.New(fault.Unavailable, "its monitor does not answer")
	}
	if err := conn.Stop(within); err != nil {
		return err
	}
	status, err := conn.Status(within)
	if err != nil {
		return err
	}
	if status.Running {
		return fault.New(fault.Unavailable, "QEMU has taken the stop, and its vCPUs run: try again")
	}
	v.setHalted(ctx, false)
	if stands(status) {
		v.noteStands(ctx)
	}
	return nil
}

// stands notes that the VM's QEMU is here with vCPUs that stand until this agent lets them run: it was just started, or found so.
func (v *vm) stands(ctx context.Context) {
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	v.noteStands(ctx)
}

// mayRunSoon tells the warden that the vCPUs of an incoming QEMU may run at any time, which letRun would have to while the guest stands still.
// They stand: until they run, the warden kills a VM that it could have frozen, and the target of a migration whose authority is over is given up
// in any case. A warden that did not hear it is told again by letRun.
func (v *vm) mayRunSoon(ctx context.Context) {
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	within, done := context.WithTimeout(ctx, wardenMax)
	defer done()
	if err := v.tellWarden(within, false); err != nil {
		v.log.LogAttrs(ctx, slog.LevelWarn, "the warden does not know of the vm yet", slog.Any("err", err))
	}
}

func (v *vm) noteStands(ctx context.Context) {
	within, done := context.WithTimeout(ctx, wardenMax)
	defer done()
	if err := v.tellWarden(within, true); err != nil {
		v.log.LogAttrs(ctx, slog.LevelWarn, "the warden does not know that the vcpus stand", slog.Any("err", err))
	}
}

// tellWarden tells the warden of the VM. The caller holds vcpus.mu.
func (v *vm) tellWarden(ctx context.Context, stands bool) error {
	c := &v.vcpus
	as := v.arbiter()
	if c.told && c.stands == stands && c.as == as {
		return nil
	}
	if err := v.agent.Authority.warden.VM(ctx, v.id, as, stands); err != nil {
		c.told = false // it may have heard
		return err
	}
	c.told, c.stands, c.as = true, stands, as
	return nil
}

// left tells the warden that the VM has no QEMU here any more.
func (v *vm) left(ctx context.Context) {
	c := &v.vcpus
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halted, c.stands, c.told = false, false, false
	within, done := context.WithTimeout(context.WithoutCancel(ctx), wardenMax)
	defer done()
	if err := v.agent.Authority.warden.Gone(within, v.id); err != nil {
		v.log.LogAttrs(ctx, slog.LevelDebug, "the warden does not know that the vm has left", slog.Any("err", err))
	}
}

// haltedFile is where it is said of a QEMU that its vCPUs stand for want of authority. It lies in the run directory: the next agent finds it, and
// it goes with QEMU.
func haltedFile(d qemu.RunDir) string { return filepath.Join(string(d), "halted") }

func halted(d qemu.RunDir) bool {
	_, err := os.Stat(haltedFile(d))
	return err == nil
}

// setHalted notes whether the VM stands for want of authority. The caller holds vcpus.mu.
func (v *vm) setHalted(ctx context.Context, halted bool) {
	if v.vcpus.halted == halted {
		return
	}
	v.vcpus.halted = halted
	err := os.Remove(haltedFile(v.runDir()))
	if halted {
		err = os.WriteFile(haltedFile(v.runDir()), nil, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// At worst the next agent finds a VM paused that it does not let run on.
		v.log.LogAttrs(ctx, slog.LevelWarn, "note of the vm's standstill", slog.Any("err", err))
	}
}

// wasHalted reports whether the VM stands for want of authority.
func (v *vm) wasHalted() bool {
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	return v.vcpus.halted
}

// qemu returns the VM's QEMU, an incoming one too, nil when there is none.
func (v *vm) qemu() *qemu.Process {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.process == nil && v.target != nil {
		return v.target.Process()
	}
	return v.process
}

// halt stops the VM for want of authority, and reports whether it stands, or need not. It does not go through the VM's loop, which may be
// waiting for the store.
func (v *vm) halt(ctx context.Context) bool {
	p := v.qemu()
	if p == nil || v.arbiter() == authority.StorageArbitrates {
		return true
	}
	v.mu.Lock()
	source, target := v.source, v.target
	v.mu.Unlock()
	if source != nil {
		source.AuthorityShort()
	}
	if target != nil {
		target.AuthorityShort()
	}
	c := &v.vcpus
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told && c.stands {
		return true
	}
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	conn := p.QMP()
	if conn == nil {
		return false
	}
	status, err := conn.Status(within)
	if err == nil && mayMove(status) {
		v.setHalted(ctx, true)
		if err = conn.Stop(within); err == nil {
			status, err = conn.Status(within)
		}
	}
	if err != nil || !stands(status) {
		return false
	}
	// QEMU answers one command after the other, so it has also flushed the disks.
	return v.tellWarden(within, true) == nil
}

// mayMove reports whether vCPUs run, or may by themselves.
func mayMove(s qmp.Status) bool { return s.Running || s.State == qmp.StateSuspended }

// stands reports whether vCPUs stand until somebody says cont. In the last phase of a copy that fails QEMU lets them run again by itself.
func stands(s qmp.Status) bool { return !mayMove(s) && s.State != qmp.StateFinishMigrate }

// runOn lets the VM run on if it stands for want of authority, and reports whether there is nothing left to do. The look and what follows are one: a
// pause that somebody wants may come at any time.
func (v *vm) runOn(ctx context.Context) bool {
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	p := v.qemu()
	if !v.vcpus.halted || p == nil {
		return true
	}
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	status, err := statusOf(within, p)
	switch {
	case err != nil:
		return false // frozen still
	case status.State == qmp.StatePaused:
		if err := v.letRunHeld(ctx, p); err != nil {
			v.log.LogAttrs(ctx, slog.LevelDebug, "does not run on yet", slog.Any("err", err))
			return false
		}
		v.log.LogAttrs(ctx, slog.LevelInfo, "runs on")
		return true
	}
	v.setHalted(ctx, false) // it was moved, or ended, or met an error: its own rules decide
	return true
}

func statusOf(ctx context.Context, p *qemu.Process) (qmp.Status, error) {
	if p.QMP() == nil {
		return qmp.Status{}, fault.New(fault.Unavailable, "its monitor does not answer")
	}
	return p.QMP().Status(ctx)
}

// keepStandstill stops VMs when the authority says so, and lets them run on, until ctx ends or the authority is over for good: then it ends them,
// and the agent, whose successor begins anew.
func (a *Agent) keepStandstill(ctx context.Context) error {
	was := false
	for {
		stopped, changed, over := a.Authority.standstill()
		if over != nil {
			a.endLeased(ctx)
			return fault.Wrap("", "authority", over)
		}
		if stopped != was {
			a.noteStandstill(ctx, stopped)
			was = stopped
		}
		settled := a.each(func(v *vm) bool {
			if stopped {
				return v.halt(ctx)
			}
			return v.runOn(ctx)
		})
		var again <-chan time.Time
		if !settled || stopped { // VMs that begin their loops meanwhile stand too
			again = time.After(haltAgain)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// each calls f for every VM, many at a time, and reports whether it was true for all.
func (a *Agent) each(f func(*vm) bool) bool {
	a.mu.Lock()
	vms := slices.Collect(maps.Values(a.vms))
	a.mu.Unlock()
	var all errgroup.Group
	all.SetLimit(haltsMax)
	var not atomic.Bool
	for _, v := range vms {
		all.Go(func() error {
			if !f(v) {
				not.Store(true)
			}
			return nil
		})
	}
	_ = all.Wait() // they return nil
	return !not.Load()
}

// endLeased ends every VM that only the lease arbitrates: others may run them from now on.
func (a *Agent) endLeased(ctx context.Context) {
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), quitMax)
	defer done()
	a.each(func(v *vm) bool {
		p := v.qemu()
		if p == nil || v.arbiter() == authority.StorageArbitrates {
			return true
		}
		err := p.Kill(undo)
		if err != nil {
			v.log.LogAttrs(undo, slog.LevelError, "a vm that this host has lost does not end", slog.Any("err", err))
		}
		return err == nil
	})
}

// noteStandstill tells users why VMs stand. The event is written when the store answers again.
func (a *Agent) noteStandstill(ctx context.Context, stopped bool) {
	e := inventory.Event{Kind: "host.recovered", Object: string(a.Host()), ObjectName: string(a.Host()), Message: "its authority is back: vms run on"}
	if stopped {
		e.Kind, e.Severity = "host.isolated", inventory.Warning
		e.Message = "the store did not answer for " + a.Authority.settings.Stop.String() + ": vms stand whose storage only the lease arbitrates"
	}
	a.Log.LogAttrs(ctx, slog.LevelWarn, "authority", slog.String("what", e.Message))
	a.tasks.Event(ctx, e)
}

// takeIn tells the warden of a QEMU that a former agent left, and finds out whether its vCPUs stand for want of authority.
func (v *vm) takeIn(ctx context.Context, p *qemu.Process) {
	if p == nil {
		return
	}
	slow, done := context.WithTimeout(ctx, adoptMax)
	_, _ = statusOf(slow, p) // until it answers at all; what counts is what it says below, with the lock held
	done()
	v.vcpus.mu.Lock()
	defer v.vcpus.mu.Unlock()
	v.vcpus.halted = halted(v.runDir())
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	status, err := statusOf(within, p)
	if err == nil {
		err = v.tellWarden(within, stands(status))
	}
	if err != nil {
		v.log.LogAttrs(ctx, slog.LevelWarn, "the warden does not know of a vm", slog.Any("err", err))
	}
}

// found translates what the VM's QEMU says of itself into a state.
func (v *vm) found(s qmp.Status) (inventory.VMState, string) {
	state, detail := foundState(s)
	if state == inventory.Paused && v.wasHalted() {
		detail = haltedDetail
	}
	return state, detail
}
