package matrix

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
	"github.com/godwit-vm/godwit/test/oracle"
)

// trial is one try of a cell: a VM, its migration, the strike, and what became of them.
type trial struct {
	f              *field
	c              cell
	name, id       string
	source, target *lab.Host
	flags          []string // of its migration
	migration      string
	pids           map[string]int
	logs           map[string]int64 // how long the hosts' logs were before
	holds          []hold
	generation     uint64
	ticks          uint32 // of the guest, before the strike
	began          time.Time
	struck         time.Time
	story          []string
}

// found is what became of the VM.
type found struct {
	outcome    string
	at         *lab.Host
	generation uint64
	migration  string // how the migration ended
	started    bool   // it was cold, and its host has started it already
}

// lateMax is how long a VM that did not settle within its bound is watched, to tell what becomes of it.
const lateMax = 45 * time.Second

func (t *trial) note(format string, args ...any) {
	t.story = append(t.story, fmt.Sprintf("%6.3fs  ", time.Since(t.began).Seconds())+fmt.Sprintf(format, args...))
}

// run is the whole of it. It returns errMissed when nothing is known of the cell.
func (t *trial) run(ctx context.Context, r *result) error {
	t.began, t.pids = time.Now(), map[string]int{}
	t.source, t.target = t.f.Hosts[0], t.f.Hosts[1]
	defer func() { // whatever happened, nothing stays held
		_ = t.releaseAll("") // it was reported where it mattered
		t.f.mounts[t.target.Name].Set(oracle.Fine)
	}()
	if err := t.create(ctx); err != nil {
		return fmt.Errorf("make a VM: %w", err)
	}
	over, err := t.strike(ctx)
	if err != nil {
		return err
	}
	f, err := t.settle(ctx, over, r)
	if err != nil {
		return err
	}
	t.f.mounts[t.target.Name].Set(oracle.Fine)
	if !slices.Contains(t.c.allowed, f.outcome) {
		return fmt.Errorf("it came to %q (%s), which the table does not allow: %s", f.outcome, f.migration, strings.Join(t.c.allowed, ", "))
	}
	if err := t.lives(ctx, f); err != nil {
		return err
	}
	return t.destroy(ctx)
}

// create starts the VM at the source.
func (t *trial) create(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, stepMax)
	defer done()
	t.f.vms++
	t.name = fmt.Sprintf("cell-%d", t.f.vms)
	t.logs = t.f.logEnds()
	for _, args := range [][]string{
		{"vm", "create", t.name, "--memory", "64M", "--firmware", romName, "--display=false", "--disk", "size=4M", "--nic", network},
		{"vm", "start", t.name},
	} {
		if _, err := t.source.Godwit(ctx, args...); err != nil {
			return err
		}
	}
	vm, err := t.source.VM(ctx, t.name)
	if err != nil {
		return err
	}
	t.id, t.generation = vm.GetId(), vm.GetRun().GetGeneration()
	for who, pids := range map[string][]int{
		sourceQEMU: t.source.QEMUs(t.id), sourceAgent: t.source.Role("agent"), targetAgent: t.target.Role("agent"),
	} {
		if len(pids) != 1 {
			return fmt.Errorf("%s is processes %v", who, pids)
		}
		t.pids[who] = pids[0]
	}
	return lab.Until(ctx, stepMax, func() error {
		t.ticks, err = uptime(t.pids[sourceQEMU])
		return err
	})
}

// strike brings the migration to its phase and strikes; over is when the fault had ended.
func (t *trial) strike(ctx context.Context) (over time.Time, err error) {
	where, what := phases[t.c.phase], faults[t.c.fault]
	t.flags = where.flags
	early := t.c.phase == "prepare" && t.c.fault == datastoreFull
	if early {
		if _, err := what.strike(t); err != nil {
			return over, err
		}
		if err := t.begin(ctx); err != nil {
			t.note("refused: %v", err)
		}
		return time.Now(), nil
	}
	if err := where.reach(ctx, t); errors.Is(err, syscall.ENOTCONN) {
		return over, fmt.Errorf("%w: the stream was gone before the phase was held: %w", errMissed, err)
	} else if err != nil {
		return over, err
	}
	ticks, err := uptime(t.running())
	if _, over := t.find(where.host(t), where.over...); err != nil && over {
		return time.Time{}, fmt.Errorf("%w: the phase was over before the strike: %w", errMissed, err)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("before the strike: %w", err)
	}
	t.ticks = ticks
	t.struck = time.Now()
	end, err := what.strike(t)
	if errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ESRCH) {
		return over, fmt.Errorf("%w: what was to be struck was gone: %w", errMissed, err)
	}
	if err != nil {
		return over, fmt.Errorf("strike: %w", err)
	}
	if at, ended := t.find(where.host(t), where.over...); ended && at.Before(t.struck) {
		if end != nil {
			err = end(ctx)
		}
		return over, errors.Join(fmt.Errorf("%w: the phase was over %v before the strike", errMissed, t.struck.Sub(at)), err)
	}
	t.note("strike: %s", t.c)
	but := ""
	if end != nil {
		but = what.victim
	}
	if err := t.releaseAll(but); err != nil {
		return over, err
	}
	if end != nil {
		if err := end(ctx); err != nil {
			return over, err
		}
	}
	t.note("the fault is over")
	return time.Now(), nil
}

// running is the QEMU that has the guest's memory in the phase.
func (t *trial) running() int {
	if t.c.phase == "owner write" || t.c.phase == "clean-up" {
		return t.pids[targetQEMU]
	}
	return t.pids[sourceQEMU]
}

// settle waits until the VM is somewhere for good and nothing of it elsewhere, and holds that to the bound.
func (t *trial) settle(ctx context.Context, over time.Time, r *result) (found, error) {
	within, done := context.WithTimeout(ctx, t.c.bound+lateMax)
	defer done()
	for {
		f, err := t.look(within)
		took := time.Since(over)
		if err == nil {
			t.note("settled: %s at %s, migration %s", f.outcome, f.at.Name, f.migration)
			r.Outcome, r.Migration, r.Settled = f.outcome, f.migration, round(took)
			if took > t.c.bound {
				return f, fmt.Errorf("it settled as %q after %v, and the bound is %v", f.outcome, took.Round(time.Millisecond), t.c.bound)
			}
			return f, nil
		}
		if pass(within, 100*time.Millisecond) != nil {
			return f, fmt.Errorf("it has not settled %v after the fault: %w", took.Round(time.Second), err)
		}
	}
}

// look says what has become of the VM, or why that is not known yet.
func (t *trial) look(ctx context.Context) (f found, err error) {
	ctx, done := context.WithTimeout(ctx, askMax)
	defer done()
	f.migration = "refused"
	if t.migration != "" {
		m := &godwitv1.Migration{}
		if err := t.source.Read(ctx, m, "migration", "show", t.migration); err != nil {
			return f, err
		}
		f.migration = strings.TrimSuffix(m.GetStatus().GetPhase()+": "+m.GetStatus().GetReason(), ": ")
		switch m.GetStatus().GetPhase() {
		case inventory.Completed.String(), inventory.Failed.String(), inventory.Canceled.String():
		default:
			return f, fmt.Errorf("the migration is %s", f.migration)
		}
	}
	var records [2]*godwitv1.VM
	for i, h := range t.f.Hosts {
		if records[i], err = h.VM(ctx, t.name); err != nil {
			return f, err
		}
	}
	run, state := records[0].GetRun(), records[0].GetStatus().GetState()
	if other := records[1]; run.GetOwner() != other.GetRun().GetOwner() || run.GetGeneration() != other.GetRun().GetGeneration() || state != other.GetStatus().GetState() {
		return f, fmt.Errorf("%s shows %v %s, and %s %v %s", t.source.Name, run, state, t.target.Name, other.GetRun(), other.GetStatus().GetState())
	}
	if heir := run.GetHeir().GetHost(); heir != "" {
		return f, fmt.Errorf("%s is heir", heir)
	}
	f.at, f.generation = t.target, run.GetGeneration()
	elsewhere, where := t.source, "target"
	if run.GetOwner() == t.source.Name {
		f.at, elsewhere, where = t.source, t.target, "source"
	}
	if left := elsewhere.Leftovers(ctx, t.id); len(left) > 0 {
		return f, fmt.Errorf("left behind: %q", left)
	}
	pids := f.at.QEMUs(t.id)
	switch {
	case state == inventory.Running.String() && len(pids) == 1:
		if f.outcome = where; pids[0] != t.pids[map[string]string{"source": sourceQEMU, "target": targetQEMU}[where]] {
			// A host that was without authority lately takes a QEMU that ends for one that its warden has ended, and starts the VM itself.
			f.outcome, f.started = "cold at "+where, true
		}
	case state == inventory.Crashed.String() && len(pids) == 0:
		f.outcome = "cold at " + where
	default:
		return f, fmt.Errorf("it is %s at %s (%s), with processes %v", state, f.at.Name, records[0].GetStatus().GetDetail(), pids)
	}
	return f, t.ports(ctx, f.at)
}

// askMax bounds one look.
const askMax = 5 * time.Second

// ports demands that a host has the VM's port as it is between migrations.
func (t *trial) ports(ctx context.Context, at *lab.Host) error {
	ports, err := at.Ports(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if strings.HasPrefix(p.ID, t.id) && p.Mode != vnet.ModeNormal {
			return fmt.Errorf("%s has port %s in mode %s", at.Name, p.ID, p.Mode)
		}
	}
	return nil
}

// lives demands that the guest is what the outcome says, and that its VM migrates once more.
func (t *trial) lives(ctx context.Context, f found) (err error) {
	ctx, done := context.WithTimeout(ctx, 2*stepMax)
	defer done()
	// One that came here has the heir's. One that stayed has its own, or a later one: an attempt that ends burns numbers, one with each try to clear the heir.
	if f.at == t.target && !f.started && f.generation != t.generation+1 || f.generation < t.generation || f.generation > t.generation+burntMax {
		return fmt.Errorf("its generation was %d, and is %d at %s", t.generation, f.generation, f.at.Name)
	}
	switch {
	case f.started:
		if t.ticks, err = t.alive(ctx, f.at); err != nil {
			return err
		}
	case strings.HasPrefix(f.outcome, "cold"):
		started := time.Now()
		if _, err := f.at.Godwit(ctx, "vm", "start", t.name); err != nil {
			return fmt.Errorf("it does not start again: %w", err)
		}
		ticks, err := t.alive(ctx, f.at)
		if most := time.Since(started)/ticksEvery + ticksEarly; err != nil || time.Duration(ticks) > most {
			return fmt.Errorf("after its start its guest has lived for %d ticks, %d at most were expected: %w", ticks, most, err)
		}
		t.ticks = ticks
	}
	ticks, err := t.alive(ctx, f.at)
	if err != nil || ticks < t.ticks {
		return fmt.Errorf("its guest had lived for %d ticks, and has for %d: %w", t.ticks, ticks, err)
	}
	before, err := f.at.VM(ctx, t.name)
	if err != nil {
		return err
	}
	to := t.target
	if f.at == t.target {
		to = t.source
	}
	if _, err := f.at.Godwit(ctx, "vm", "migrate", t.name, "--to", to.Name); err != nil {
		return fmt.Errorf("one more migration: %w", err)
	}
	last := ticks
	if ticks, err = t.alive(ctx, to); err != nil || ticks < last {
		return fmt.Errorf("after one more migration its guest had lived for %d ticks, and has for %d: %w", last, ticks, err)
	}
	return lab.Until(ctx, stepMax, func() error {
		if left := f.at.Leftovers(ctx, t.id); len(left) > 0 {
			return fmt.Errorf("left behind by one more migration: %q", left)
		}
		now, err := to.VM(ctx, t.name)
		if err != nil {
			return err
		}
		want := before.GetRun().GetGeneration() + 1
		locks, err := t.f.locks(t.id)
		if err != nil {
			return err
		}
		if got := now.GetRun().GetGeneration(); got != want || !slices.Equal(locks, []uint64{want}) {
			return fmt.Errorf("after one more migration it has generation %d, and lock records of %v, not %d", got, locks, want)
		}
		return t.ports(ctx, to)
	})
}

// burntMax bounds the generations that one attempt may burn.
const burntMax = 10

// What a guest's clock may show after its start.
const (
	ticksEvery = 10 * time.Millisecond
	ticksEarly = 20
)

// alive waits until the guest lives at the host and its clock goes on, and returns its uptime.
func (t *trial) alive(ctx context.Context, at *lab.Host) (ticks uint32, err error) {
	first := uint32(0)
	err = lab.Until(ctx, stepMax, func() error {
		pids := at.QEMUs(t.id)
		if len(pids) != 1 {
			return fmt.Errorf("%s has QEMUs %v", at.Name, pids)
		}
		if ticks, err = uptime(pids[0]); err != nil {
			return err
		}
		if first == 0 {
			first = ticks
		}
		if ticks <= first {
			return fmt.Errorf("its clock stands at %d", ticks)
		}
		return nil
	})
	return ticks, err
}

// destroy removes the VM.
func (t *trial) destroy(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, stepMax)
	defer done()
	return errors.Join(destroy(ctx, t.source, t.name))
}

func destroy(ctx context.Context, h *lab.Host, name string) error {
	_, stop := h.Godwit(ctx, "vm", "stop", "--force", name)
	if _, err := h.Godwit(ctx, "vm", "destroy", "--delete-disks", name); err != nil {
		return errors.Join(stop, err) // one that was off needs no stop
	}
	return nil
}
