package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// The pauses before a VM is started again that could not be: the first, and the longest.
const (
	reviveAgain    = 2 * time.Second
	reviveAgainMax = time.Minute
)

// revival is a VM that is wanted on and has no QEMU because it was lost with a host: with another one, whose VM the leader gave to this one, or
// with this one, which was booted or fenced since. It is started until that works, or the VM is not to be on here any more.
type revival struct {
	why        string
	generation inventory.Generation // as the leader gave it; 0: one of its own
	pause      time.Duration        // after the next failure
	due        <-chan time.Time
	tried      bool
}

func newRevival(why string, generation inventory.Generation) *revival {
	return &revival{why: why, generation: generation, pause: reviveAgain, due: time.After(0)}
}

// reassigned returns why a VM is this host's to start, if it is because the leader gave it to this host: nobody has started the VM
// with this generation then.
func (a *Agent) reassigned(vm inventory.VM) (*revival, bool) {
	r := vm.Place.Restart
	if vm.Run.Owner != a.Host() || !vm.Run.Heir.IsZero() || vm.Run.Wanted != inventory.PowerOn || !r.Gave(vm.Run) {
		return nil, false
	}
	generation := r.Generation
	if vm.Run.OwnerGaveUp() {
		generation = 0 // it is spent
	}
	return newRevival(r.Why, generation), true
}

// giveBack starts a VM that has a loop here, and that the leader has given to this host: its last life ended in a migration, or it was about
// to arrive from a host that is dead. It reports whether it is to be asked again.
func (a *Agent) giveBack(ctx context.Context, v *vm, now inventory.VM) (again bool) {
	r, ok := a.reassigned(now)
	if !ok {
		return false
	}
	if t := v.arriving(); t != nil {
		// No heir stood, or the leader had this end's word: it was never released and never will be, and would wait for its source for a
		// minute. One that runs after all says so, and nothing is done.
		answer, err := t.Discard(ctx, "the leader gave the VM to this host: "+r.why)
		return err != nil || answer == handover.AnswerDiscarded
	}
	if v.qemu() != nil || a.taken(now, r.generation) {
		return false
	}
	// A loop that has ended is taken in at the next look.
	_ = v.do(ctx, func(context.Context) error {
		if v.process == nil && v.source == nil && v.target == nil && v.revival == nil {
			v.revival = r
		}
		return nil
	})
	return false
}

// lostHere returns why a VM of this host that has no QEMU is to be started, if it is because it was lost with the host's former life.
func (a *Agent) lostHere(vm inventory.VM) (*revival, bool) {
	switch {
	case vm.Run.Owner != a.Host() || !vm.Run.Heir.IsZero() || vm.Run.Wanted != inventory.PowerOn:
		return nil, false
	case a.rebooted:
		return newRevival("its host was booted", 0), true
	case a.fenced:
		return newRevival("its host was fenced and came back", 0), true
	}
	return a.reassigned(vm)
}

// revive starts the VM of a revival, in its loop.
func (v *vm) revive(ctx context.Context) {
	r := v.revival
	r.due = nil
	if v.process != nil || v.source != nil || v.target != nil {
		v.revival = nil // it came up another way
		return
	}
	var err error
	if r.tried {
		err = v.bringBack(ctx, r)
	} else {
		r.tried = true
		err = v.agent.tasks.Run(ctx, "vm.restart", string(v.id), v.stored.Spec.Name, func(ctx context.Context, _ *task.Task) error { return v.bringBack(ctx, r) })
	}
	switch {
	case err == nil, errors.Is(err, errNotWanted):
		v.revival = nil
	case ctx.Err() != nil: // the next agent goes on
	default:
		v.giveUp(ctx, r, err)
		v.log.LogAttrs(ctx, slog.LevelWarn, "not started again yet", slog.String("why", r.why), slog.Any("err", err), slog.Duration("again", r.pause))
		v.state(ctx, inventory.Crashed, fmt.Sprintf("%s; it is tried to be started again every %v: %v", r.why, r.pause, err))
		r.due = time.After(r.pause)
		r.pause = min(2*r.pause, reviveAgainMax)
	}
}

// giveUp lets the leader look for another host when this one has no room for the VM, or not what it takes. The generation is spent with that: the
// next try here takes another one in a transaction, which fails once the leader has named a new owner. Any other trouble is the VM's own, or
// passes, and would follow it.
func (v *vm) giveUp(ctx context.Context, r *revival, why error) {
	if v.process != nil || !fault.Is(why, fault.Incompatible) && !fault.Is(why, fault.NoResources) {
		return
	}
	r.generation = 0
	run, err := v.agent.writer.UpdateRun(ctx, v.id, func(run *inventory.VMRun) error {
		if err := v.wantedHere(*run); err != nil {
			return err
		}
		run.GivenUp = run.Generation
		return nil
	})
	if err != nil {
		v.log.LogAttrs(ctx, slog.LevelWarn, "not given up", slog.Any("err", err)) // the next try says so again
		return
	}
	v.mu.Lock()
	v.stored.Run = run
	v.mu.Unlock()
}

// errNotWanted ends a revival without a word.
var errNotWanted = errors.New("it is not to be on here any more")

// bringBack starts the VM with the generation that the leader has given, or, where that was used by a try before, with a new one.
func (v *vm) bringBack(ctx context.Context, r *revival) error {
	if err := v.mayStart(ctx); err != nil {
		return err
	}
	stored, err := v.agent.Store.VM(ctx, string(v.id))
	if fault.Is(err, fault.NotFound) {
		return errNotWanted
	}
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.stored.Spec, v.stored.Run, v.stored.Place = stored.Spec, stored.Run, stored.Place
	v.mu.Unlock()
	if err := v.wantedHere(stored.Run); err != nil {
		return err
	}
	if r.generation == 0 || r.generation != stored.Run.Generation || v.agent.taken(stored, r.generation) {
		run, err := v.agent.writer.UpdateRun(ctx, v.id, func(run *inventory.VMRun) error {
			if err := v.wantedHere(*run); err != nil {
				return err
			}
			run.Generation++
			return nil
		})
		if err != nil {
			return err
		}
		v.mu.Lock()
		v.stored.Run = run
		v.mu.Unlock()
	}
	if err := v.bringUp(ctx); err != nil {
		return err
	}
	v.agent.tasks.Event(ctx, inventory.Event{
		Kind: "vm.restarted", Severity: inventory.Warning, Object: string(v.id), ObjectName: v.stored.Spec.Name,
		Message: fmt.Sprintf("%s; it runs here as generation %d", r.why, v.stored.Run.Generation),
	})
	return nil
}

// wantedHere refuses what is not this host's to start.
func (v *vm) wantedHere(run inventory.VMRun) error {
	switch {
	case run.Owner != v.agent.Host() || run.Wanted != inventory.PowerOn:
		return errNotWanted
	case !run.Heir.IsZero():
		return fault.New(fault.Conflict, "host %s is to take it over by migration %s", run.Heir.Host, run.Heir.Migration)
	}
	return nil
}

// taken reports whether somebody has made a lock record of the generation already.
func (a *Agent) taken(vm inventory.VM, generation inventory.Generation) bool {
	highest, _ := a.highestLock(vm)
	return highest > 0 && highest >= generation
}
