package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// ledger is task.Records on the store.
type ledger struct {
	*store.Writer

	agent *Agent
}

// Answers implements task.Records.
func (l ledger) Answers(ctx context.Context, host inventory.HostID) bool {
	h, err := l.agent.Store.Host(ctx, host)
	return err == nil && l.agent.Reachable(ctx, h.Spec.Address)
}

// Keeper returns the tasks of this host, for those who show and end them, and for calls with an idempotency key.
func (a *Agent) Keeper() *task.Keeper { return a.tasks }

// Tasks returns the tasks of the cluster, newest first: what the store has of all hosts, and of this one what goes on now. Tasks that
// began on another host within the last moments may be missing.
func (a *Agent) Tasks(ctx context.Context) ([]inventory.Task, error) {
	all, err := a.Store.Tasks(ctx)
	if err != nil {
		return nil, err
	}
	return MergeTasks(a.tasks.Tasks(), all), nil
}

// MergeTasks puts lists together, newest first; of a task that is in several the first list's counts.
func MergeTasks(lists ...[]inventory.Task) []inventory.Task {
	var all []inventory.Task
	seen := map[inventory.TaskID]bool{}
	for _, list := range lists {
		for _, t := range list {
			if !seen[t.ID] {
				seen[t.ID] = true
				all = append(all, t)
			}
		}
	}
	slices.SortStableFunc(all, func(x, y inventory.Task) int { return y.Spec.Requested.Compare(x.Spec.Requested) })
	return all
}

// Task returns one task, live when its work is done here.
func (a *Agent) Task(ctx context.Context, id inventory.TaskID) (inventory.Task, error) {
	if t, ok := a.tasks.Task(id); ok {
		return t, nil
	}
	return a.Store.Task(ctx, id)
}

// OtherHosts lists the hosts of the cluster but this one.
func (a *Agent) OtherHosts(ctx context.Context) ([]inventory.HostID, error) {
	hosts, err := a.Store.Hosts(ctx)
	var others []inventory.HostID
	for _, h := range hosts {
		if h.ID != a.Host() {
			others = append(others, h.ID)
		}
	}
	return others, err
}

// FollowEvents calls past once with the events that there are, oldest first, and then next with each further one, until ctx ends or one of
// them fails.
func (a *Agent) FollowEvents(ctx context.Context, past func([]inventory.Event) error, next func(inventory.Event) error) error {
	return a.Store.FollowEvents(ctx, past, next)
}

// Events returns the events of the cluster, oldest first.
func (a *Agent) Events(ctx context.Context) ([]inventory.Event, error) { return a.Store.Events(ctx) }

// endTasks ends the tasks that an earlier agent of this host left open: their work ended with it. A migration goes on by its own record, and its
// task with it.
func (a *Agent) endTasks(ctx context.Context) {
	for {
		err := a.endTasksOnce(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		a.Log.LogAttrs(ctx, slog.LevelWarn, "tasks of the former agent not ended yet", slog.Any("err", err))
		select {
		case <-ctx.Done():
		case <-time.After(resyncEvery):
		}
	}
}

func (a *Agent) endTasksOnce(ctx context.Context) error {
	tasks, err := a.Store.Tasks(ctx)
	if err != nil {
		return err
	}
	migrations, err := a.Store.Migrations(ctx)
	if err != nil {
		return err
	}
	taken := map[inventory.MigrationID]bool{}
	for _, t := range tasks {
		if _, own := a.tasks.Task(t.ID); own || t.Spec.Host != a.Host() || t.Status.State.Final() {
			continue
		}
		if m, ok := migrationOf(t, migrations); ok {
			taken[m.ID] = true
			a.resumeMigrationTask(ctx, t, m)
			continue
		}
		// This error is what the record is to say; nobody else asks for it.
		_ = a.tasks.Resume(ctx, t, func(context.Context, *task.Task) error {
			return fault.New(fault.Unavailable, "the agent was restarted")
		})
	}
	// A migration whose task was not written any more before the former agent was killed.
	for _, m := range migrations {
		if m.Spec.Source != a.Host() || m.Status.Phase.Final() || taken[m.ID] || !a.wasOpen(m.ID) {
			continue
		}
		a.resumeMigrationTask(ctx, inventory.Task{ID: inventory.NewTaskID(), Spec: inventory.TaskSpec{
			Kind: "vm.migrate", Object: string(m.Spec.VM), ObjectName: m.Spec.VMName, Host: a.Host(), By: m.Spec.By, Requested: m.Spec.Requested,
		}, Status: inventory.TaskStatus{Result: string(m.ID)}}, m)
	}
	return nil
}

// wasOpen reports whether the migration was open when this agent started.
func (a *Agent) wasOpen(id inventory.MigrationID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.before[id]
}

// migrationOf finds the migration that a task of an earlier agent is about: a VM has one at a time.
func migrationOf(t inventory.Task, migrations []inventory.Migration) (found inventory.Migration, ok bool) {
	if t.Spec.Kind != "vm.migrate" {
		return found, false
	}
	for _, m := range migrations {
		if string(m.ID) == t.Status.Result {
			return m, true
		}
		if t.Status.Result == "" && string(m.Spec.VM) == t.Spec.Object && m.Spec.Source == t.Spec.Host && !m.Spec.Requested.Before(t.Spec.Requested) &&
			(!ok || m.Spec.Requested.Before(found.Spec.Requested)) {
			found, ok = m, true
		}
	}
	return found, ok
}

func (a *Agent) resumeMigrationTask(ctx context.Context, left inventory.Task, m inventory.Migration) {
	a.spawn(ctx, func(loop context.Context) {
		// The record says how it ended.
		_ = a.tasks.Resume(loop, left, func(_ context.Context, t *task.Task) error {
			t.Result(string(m.ID))
			return a.followMigrationTask(loop, t, m)
		})
	})
}

// begun is how the beginning of a migration went.
type begun struct {
	migration inventory.Migration
	err       error
}

// migrateTask runs a migration as a task and returns as soon as it has begun or was refused.
func (a *Agent) migrateTask(ctx context.Context, vm inventory.VM, begin func(context.Context) (inventory.Migration, error)) (inventory.Migration, error) {
	answer := make(chan begun, 2)
	detached := context.WithoutCancel(ctx)
	if !a.spawn(detached, func(loop context.Context) {
		err := a.tasks.Run(detached, "vm.migrate", string(vm.ID), vm.Spec.Name, func(op context.Context, t *task.Task) error {
			m, err := begin(op)
			if err != nil {
				return err
			}
			t.Result(string(m.ID))
			a.tasks.Event(op, inventory.Event{
				Kind: "migration.begun", Object: string(vm.ID), ObjectName: vm.Spec.Name,
				Message: "from " + string(m.Spec.Source) + " to " + string(m.Spec.Target) + " by " + string(m.ID),
			})
			answer <- begun{migration: m}
			if op.Err() != nil { // canceled in admission, too late for that
				within, done := context.WithTimeout(context.WithoutCancel(op), storeTimeout)
				defer done()
				_, err := a.CancelMigration(within, m.ID)
				a.Log.LogAttrs(loop, slog.LevelInfo, "canceled while it began", slog.String("migration", string(m.ID)), slog.Any("err", err))
			}
			return a.followMigrationTask(loop, t, m)
		})
		answer <- begun{err: err}
	}) {
		return inventory.Migration{}, fault.New(fault.Unavailable, "the agent of %s stops: try again", a.Host())
	}
	b := <-answer
	return b.migration, b.err
}

// figuresEvery is how often a migration's task tells its progress.
const figuresEvery = 250 * time.Millisecond

// followMigrationTask follows a migration to its end, whoever drives it, and says how it ended; task.ErrGoesOn when this agent ends before.
func (a *Agent) followMigrationTask(ctx context.Context, t *task.Task, m inventory.Migration) error {
	t.OnCancel(func(ctx context.Context) error {
		_, err := a.CancelMigration(ctx, m.ID)
		return err
	})
	for {
		now, err := a.Store.Migration(ctx, m.ID)
		switch {
		case ctx.Err() != nil:
			return task.ErrGoesOn
		case fault.Is(err, fault.NotFound):
			return err
		case err == nil:
			m = now
		}
		m, source := a.liveMigration(m)
		if source == nil {
			if err == nil && m.Status.Phase.Final() {
				return a.migrationEnded(ctx, t, m)
			}
			progressOf(t, m.Status)
			select {
			case <-ctx.Done():
			case <-time.After(figuresEvery):
			}
			continue
		}
		if m.Status, err = a.followSource(ctx, t, source); err == nil {
			return a.migrationEnded(ctx, t, m)
		}
	}
}

// followSource follows a migration that is driven here. It returns ctx's error when that ended first.
func (a *Agent) followSource(ctx context.Context, t *task.Task, source *migrate.Source) (inventory.MigrationStatus, error) {
	var told time.Time
	for {
		status, changed := source.Status()
		if status.Phase.Final() {
			return status, nil
		}
		if time.Since(told) >= figuresEvery {
			told = time.Now()
			progressOf(t, status)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status, ctx.Err()
		}
	}
}

// progressOf tells a migration's progress as its task's: the memory that the target has, of all.
func progressOf(t *task.Task, s inventory.MigrationStatus) {
	p := s.Progress
	detail := s.Phase.String()
	if p.Round > 0 {
		detail += ", " + p.Remaining.String() + " left, " + p.SendRate.String()
	}
	t.Progress(int64(max(0, p.Total-p.Remaining)), int64(p.Total), detail)
}

// migrationEnded notes how the migration ended and returns that as the task's error.
func (a *Agent) migrationEnded(ctx context.Context, t *task.Task, m inventory.Migration) error {
	e := inventory.Event{
		Kind: "migration." + m.Status.Phase.String(), Object: string(m.Spec.VM), ObjectName: m.Spec.VMName, By: t.Spec().By, Task: t.ID(),
		Message: "from " + string(m.Spec.Source) + " to " + string(m.Spec.Target) + " by " + string(m.ID),
	}
	if m.Status.Reason != "" {
		e.Message += ": " + m.Status.Reason
	}
	if m.Status.Phase == inventory.Failed {
		e.Severity = inventory.Error
	}
	a.tasks.Event(ctx, e)
	switch m.Status.Phase { //nolint:exhaustive // it is over
	case inventory.Completed:
		t.Progress(int64(m.Status.Progress.Total), int64(m.Status.Progress.Total), "the VM runs on "+string(m.Spec.Target))
		return nil
	case inventory.Canceled:
		return fault.New(fault.Canceled, "canceled, with %s: the VM runs on at %s", m.ID, m.Spec.Source)
	}
	if len(m.Status.Reasons) > 0 {
		return fault.Refuse(fault.Incompatible, m.Status.Reasons)
	}
	return fault.New(fault.Unavailable, "%s: %s", m.ID, m.Status.Reason)
}

// caller returns who calls, for records that name somebody in any case.
func caller(ctx context.Context) string {
	if name := task.CallerOf(ctx).Name; name != "" {
		return name
	}
	return "administrator"
}

// noteState notes a change of a VM's state as an event. The states on the way to another one, and those in a migration, have no event of
// their own.
func (v *vm) noteState(ctx context.Context, old, state inventory.VMState, detail string) {
	stored := v.record()
	if e, ok := stateEvent(stored, old, state, detail); ok {
		v.agent.tasks.Event(ctx, e)
	}
}

func stateEvent(stored inventory.VM, old, state inventory.VMState, detail string) (inventory.Event, bool) {
	e := inventory.Event{Object: string(stored.ID), ObjectName: stored.Spec.Name, Message: detail}
	switch state {
	case inventory.Running:
		switch old { //nolint:exhaustive // a migration's end has an event of its own
		case inventory.Migrating:
			return e, false
		case inventory.Paused:
			e.Kind = "vm.resumed"
		default:
			e.Kind = "vm.started"
		}
	case inventory.Stopped:
		if e.Kind = "vm.stopped"; old == inventory.Starting {
			e.Severity = inventory.Error
		}
	case inventory.Paused:
		if e.Kind = "vm.paused"; detail != "" && detail != "on request" {
			e.Severity = inventory.Error
		}
	case inventory.Crashed:
		e.Kind, e.Severity = "vm.crashed", inventory.Error
	case inventory.Unknown:
		e.Kind, e.Severity = "vm.lost", inventory.Warning
	case inventory.Starting, inventory.Migrating:
		return e, false
	}
	return e, old != state
}

// noteTrouble notes that a loop over the kind does not get on, or does again.
func (a *Agent) noteTrouble(ctx context.Context, kind store.Kind, err error, before string) {
	if kind != store.Networks && kind != store.Hosts || ctx.Err() != nil || (err == nil) == (before == "") {
		return // the other loops need the store only, and these need it too
	}
	e := inventory.Event{Kind: "host.recovered", Object: string(a.Host()), ObjectName: string(a.Host()), Message: string(kind) + "s are followed again"}
	if err != nil {
		e.Kind, e.Severity, e.Message = "host.trouble", inventory.Warning, string(kind)+"s are not followed: "+err.Error()
	}
	a.tasks.Event(ctx, e)
}

// keepTasks writes tasks and events until ctx ends, and tells of this agent's start and end.
func (a *Agent) keepTasks(ctx context.Context) {
	e := inventory.Event{Kind: "host.started", Object: string(a.Host()), ObjectName: string(a.Host()), Message: "the agent, version " + a.Version}
	if a.rebooted {
		e.Message += ", after a boot of the machine"
	}
	a.tasks.Event(ctx, e)
	stop := context.AfterFunc(ctx, sync.OnceFunc(func() {
		e.Kind, e.Message = "host.stopped", "the agent was asked to end; VMs run on"
		e.Time = time.Time{}
		a.tasks.Event(context.WithoutCancel(ctx), e)
	}))
	defer stop()
	a.tasks.Serve(ctx)
}

var _ task.Records = ledger{}
