// Package task keeps what a host is doing and what happened on it: every long or mutating operation is a task that others can see,
// follow and end; events tell what changed and why; and a call that is repeated with its idempotency key is executed once.
//
// The Keeper holds what goes on now in memory and writes it to the store behind the operations' backs, in order and in batches (record.go):
// no operation waits for it, and a store that is away gets it later. Queues are bounded and what they lose is counted and said. What the
// operations do is not known here.
//
//	face ─Once─► handler ─Run─► operation            Serve ─► store: tasks, events, late answers
//	             same key: same answer   └─Progress, Event─┘
package task

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of a host's tasks.
const (
	runningMax = 128  // tasks at work; more are queued
	queuedMax  = 1024 // tasks that wait; more are refused
	endedKept  = 200  // tasks that have ended, are written down, and stay in memory for those who watch
	unsavedMax = 2000 // tasks that have ended and could not be written down yet
	reasonsMax = 20   // of one failure, in the record
	textMax    = 1000 // bytes of one line in a record
)

// cancelWait is how long Cancel waits for what comes of it.
const cancelWait = 5 * time.Second

// watchEvery is the pace of Watch: progress changes far more often than anybody reads.
const watchEvery = 100 * time.Millisecond

// ErrGoesOn is returned by an operation that goes on without this agent: its task is not over, and the next agent takes it up with Resume.
var ErrGoesOn = errors.New("it goes on without this agent")

var errAgentEnds = errors.New("the agent ends")

// canceledError is the cause of an operation's end that somebody asked for.
type canceledError struct{ by string }

// Error says who asked.
func (c canceledError) Error() string {
	if c.by == "" {
		return "canceled"
	}
	return "canceled by " + c.by
}

// Keeper runs the tasks of one host. Its methods may be called by many goroutines.
type Keeper struct {
	host  inventory.HostID
	slots chan struct{}
	wake  chan struct{} // something is to be written

	mu       sync.Mutex
	records  Records // nil: nothing is written
	log      *slog.Logger
	tasks    map[inventory.TaskID]*Task
	active   int
	idle     chan struct{} // closed when the last task has ended after the end was announced
	ending   bool
	unsaved  []*Task           // to be written, in order
	ended    []*Task           // written, oldest first
	events   []inventory.Event // to be written, in order
	others   waiting           // of events, those that are no audits
	audits   waiting
	last     time.Time
	flaps    map[flapKey]*flap
	requests map[string]*request
	finished []*request // oldest first
	late     []func(context.Context, Records) error
}

// New returns the Keeper of a host. It writes nothing down before KeepIn and Serve.
func New(host inventory.HostID) *Keeper {
	return &Keeper{
		host: host, slots: make(chan struct{}, runningMax), wake: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler),
		tasks: map[inventory.TaskID]*Task{}, flaps: map[flapKey]*flap{}, requests: map[string]*request{},
	}
}

// Task is one operation while it runs.
type Task struct {
	keeper *Keeper
	part   bool // of another task: it has no record of its own
	cancel context.CancelCauseFunc
	over   chan struct{}

	mu       sync.Mutex
	record   inventory.Task
	changed  chan struct{} // closed and replaced when the record changes
	moved    bool          // there was progress since the last write
	onCancel func(context.Context) error

	queued, kept bool // in Keeper.unsaved, in Keeper.ended; the Keeper's lock guards them
}

// Progress says how far the operation is: done of total in a unit of its own (total 0: unknown), and what it does now. It may
// be called as often as the operation likes.
func (t *Task) Progress(done, total int64, detail string) {
	if t.part {
		return
	}
	t.change(func(s *inventory.TaskStatus) {
		s.Done, s.Total, s.Detail = done, total, clean(detail)
		t.moved = true
	})
}

// Result says what the operation made: the id of an object, or an image's path.
func (t *Task) Result(id string) {
	if !t.part {
		t.change(func(s *inventory.TaskStatus) { s.Result = clean(id) })
	}
}

// ID returns the task's id, empty for a part of another task.
func (t *Task) ID() inventory.TaskID { return t.record.ID }

// Spec returns what was asked for.
func (t *Task) Spec() inventory.TaskSpec { return t.snapshot().Spec }

// OnCancel gives the task a way of its own to end: Cancel calls f instead of ending the operation's context. f's error, that it is too late,
// say, is what the one who cancels gets, and the task goes on.
func (t *Task) OnCancel(f func(context.Context) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onCancel = f
}

func (t *Task) change(f func(*inventory.TaskStatus)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.record.Status)
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *Task) snapshot() inventory.Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.record
	r.Status.Reasons = slices.Clone(r.Status.Reasons)
	return r
}

type taskKey struct{}

// of returns the task that ctx's operation is, nil for none.
func of(ctx context.Context) *Task {
	t, _ := ctx.Value(taskKey{}).(*Task)
	return t
}

// Run runs f as a task of the given kind ("vm.start") on an object and returns its error when it is over. The work does not end with
// the caller: f's context ends when the task is canceled or the agent ends, and for nothing else. The caller and its idempotency key are
// taken from ctx (see WithCaller).
//
// A Run inside of a task's operation is part of that task and has no record of its own. More than runningMax tasks wait for one another;
// beyond queuedMax it is fault.NoResources. Run begins with the claim of the call's idempotency key (see Once).
func (k *Keeper) Run(ctx context.Context, kind, object, name string, f func(ctx context.Context, t *Task) error) error {
	if of(ctx) != nil {
		return f(ctx, &Task{part: true})
	}
	caller := CallerOf(ctx)
	record := inventory.Task{ID: inventory.NewTaskID(), Spec: inventory.TaskSpec{
		Kind: kind, Object: clean(object), ObjectName: clean(name), Host: k.host, By: clean(caller.Name), Requested: time.Now(), Request: caller.Request,
	}}
	if err := claim(ctx, record.ID); err != nil {
		return err
	}
	return k.run(ctx, record, f)
}

// Resume runs f as the task that an earlier agent of this host has left open.
func (k *Keeper) Resume(ctx context.Context, left inventory.Task, f func(ctx context.Context, t *Task) error) error {
	return k.run(ctx, left, f)
}

func (k *Keeper) run(ctx context.Context, record inventory.Task, f func(ctx context.Context, t *Task) error) error {
	op, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	t := &Task{keeper: k, record: record, cancel: cancel, changed: make(chan struct{}), over: make(chan struct{})}
	if err := k.add(t); err != nil {
		return err
	}
	op = context.WithValue(op, taskKey{}, t)
	err := func() error {
		select {
		case k.slots <- struct{}{}:
			defer func() { <-k.slots }()
		case <-op.Done():
			return op.Err()
		}
		t.change(func(s *inventory.TaskStatus) {
			s.State = inventory.TaskRunning
			if s.Started.IsZero() {
				s.Started = time.Now()
			}
		})
		return f(op, t)
	}()
	return k.end(op, t, err)
}

func (k *Keeper) add(t *Task) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.ending:
		return fault.New(fault.Unavailable, "the agent of %s stops: try again", k.host)
	case k.active >= runningMax+queuedMax:
		return fault.New(fault.NoResources, "host %s has %d tasks to do: wait until some have ended", k.host, k.active)
	}
	k.active++
	k.tasks[t.record.ID] = t
	k.save(t)
	return nil
}

// save queues the task to be written. The Keeper's lock is held.
func (k *Keeper) save(t *Task) {
	if t.queued {
		return
	}
	t.queued = true
	k.unsaved = append(k.unsaved, t)
	k.rouse()
}

func (k *Keeper) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// end writes down how the operation ended and returns what its caller gets.
func (k *Keeper) end(op context.Context, t *Task, err error) error {
	cause := context.Cause(op)
	broken := err != nil && (fault.Is(err, fault.Canceled) || errors.Is(err, context.Canceled))
	if errors.Is(err, ErrGoesOn) {
		k.forget(t)
		return fault.New(fault.Unavailable, "the agent of %s ends: %s goes on without it", k.host, t.record.ID)
	}
	state := inventory.TaskSucceeded
	switch {
	case err == nil:
	case errors.Is(cause, errAgentEnds):
		state = inventory.TaskFailed
		if broken {
			err = fault.New(fault.Unavailable, "the agent of %s ended during %s: %w", k.host, t.record.ID, err)
		}
	case broken: // on request, or because what it follows was
		state = inventory.TaskCanceled
		if by, ok := errors.AsType[canceledError](cause); ok {
			err = by
		}
		err = fault.New(fault.Canceled, "%s was %w", t.record.ID, err)
	default:
		state = inventory.TaskFailed
	}
	t.change(func(s *inventory.TaskStatus) {
		s.State, s.Ended = state, time.Now()
		if err != nil {
			s.Reason = clean(err.Error())
			if refusal, ok := errors.AsType[*fault.RefusalError](err); ok {
				s.Reasons = nil
				for _, r := range refusal.Reasons[:min(len(refusal.Reasons), reasonsMax)] {
					s.Reasons = append(s.Reasons, clean(r))
				}
			}
		}
	})
	r := t.snapshot()
	e := inventory.Event{Kind: "task." + state.String(), Object: r.Spec.Object, ObjectName: r.Spec.ObjectName, By: r.Spec.By, Task: r.ID, Message: r.Spec.Kind}
	if state != inventory.TaskSucceeded {
		e.Severity, e.Message = inventory.Warning, r.Spec.Kind+": "+r.Status.Reason
	}
	k.Event(op, e)
	k.forget(t)
	return err
}

// forget takes an ended task out of the work that is waited for, and has it written.
func (k *Keeper) forget(t *Task) {
	close(t.over)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.save(t)
	if k.active--; k.active == 0 && k.idle != nil {
		close(k.idle)
		k.idle = nil
	}
}

// Tasks returns what is in memory: the tasks that go on, and those that ended last.
func (k *Keeper) Tasks() []inventory.Task {
	k.mu.Lock()
	all := make([]*Task, 0, len(k.tasks))
	for _, t := range k.tasks {
		all = append(all, t)
	}
	k.mu.Unlock()
	records := make([]inventory.Task, len(all))
	for i, t := range all {
		records[i] = t.snapshot()
	}
	slices.SortFunc(records, func(a, b inventory.Task) int { return b.Spec.Requested.Compare(a.Spec.Requested) })
	return records
}

// Task returns a task that is in memory.
func (k *Keeper) Task(id inventory.TaskID) (inventory.Task, bool) {
	t := k.lookup(id)
	if t == nil {
		return inventory.Task{}, false
	}
	return t.snapshot(), true
}

func (k *Keeper) lookup(id inventory.TaskID) *Task {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tasks[id]
}

// Watch calls send with a task that is in memory whenever it changed, some times in a second at most, until it has ended, ctx ends or send
// fails.
func (k *Keeper) Watch(ctx context.Context, id inventory.TaskID, send func(inventory.Task) error) error {
	t := k.lookup(id)
	if t == nil {
		return fault.New(fault.NotFound, "no task %q: see godwit task ls", string(id))
	}
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		r := t.snapshot()
		if err := send(r); err != nil || r.Status.State.Final() {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-t.over:
		case <-time.After(watchEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Cancel asks for the end of a task of this host and returns it as it is then. One that has ended, or that came to another end meanwhile,
// is fault.Conflict with the state; one that takes longer than cancelWait to end is returned as it is.
func (k *Keeper) Cancel(ctx context.Context, id inventory.TaskID) (inventory.Task, error) {
	t := k.lookup(id)
	if t == nil {
		return inventory.Task{}, fault.New(fault.NotFound, "no task %q: see godwit task ls", string(id))
	}
	refuse := func(format string, args ...any) (inventory.Task, error) {
		return t.snapshot(), fault.Wrap("cancel", "task "+string(id), fault.New(fault.Conflict, format, args...))
	}
	if r := t.snapshot(); r.Status.State.Final() {
		return refuse("it is over: %v", r.Status.State)
	}
	t.mu.Lock()
	own := t.onCancel
	t.mu.Unlock()
	if own != nil {
		if err := own(ctx); err != nil {
			return refuse("it cannot be canceled any more: %w", err)
		}
	} else {
		t.cancel(canceledError{clean(CallerOf(ctx).Name)})
	}
	t.mu.Lock()
	t.record.Spec.Canceled = true
	t.mu.Unlock()
	k.mu.Lock()
	k.save(t)
	k.mu.Unlock()
	select {
	case <-t.over:
	case <-time.After(cancelWait):
	case <-ctx.Done():
	}
	r := t.snapshot()
	if r.Status.State.Final() && r.Status.State != inventory.TaskCanceled {
		return refuse("that came too late: it %v", r.Status.State)
	}
	return r, nil
}

// clean makes a text fit for a record: one line of valid UTF-8 that is not too long.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > textMax {
		s = strings.ToValidUTF8(s[:textMax], "") + "…"
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
