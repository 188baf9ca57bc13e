// Package task keeps what a host is doing: every long or mutating operation is a task that others can see, follow and end.
package task

import (
	"context"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Keeper runs the tasks of one host. Its methods may be called by many goroutines.
type Keeper struct {
	host inventory.HostID

	mu    sync.Mutex
	tasks map[inventory.TaskID]*Task
}

// New returns the Keeper of a host.
func New(host inventory.HostID) *Keeper {
	return &Keeper{host: host, tasks: map[inventory.TaskID]*Task{}}
}

// Task is one operation while it runs.
type Task struct {
	mu     sync.Mutex
	record inventory.Task
}

// Progress says how far the operation is: done of total in a unit of its own (total 0: unknown), and what it does now. It may
// be called as often as the operation likes.
func (t *Task) Progress(done, total int64, detail string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.record.Status.Done, t.record.Status.Total, t.record.Status.Detail = done, total, detail
}

// Result says what the operation made: the id of an object, or an image's path.
func (t *Task) Result(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.record.Status.Result = id
}

// Run runs f as a task of the given kind ("vm.start") on an object and returns its error. f's context ends when the task is
// canceled. The caller and its idempotency key are taken from ctx (see WithCaller).
func (k *Keeper) Run(ctx context.Context, kind, object, name string, f func(ctx context.Context, t *Task) error) error {
	caller := CallerOf(ctx)
	t := &Task{record: inventory.Task{ID: inventory.NewTaskID(), Spec: inventory.TaskSpec{
		Kind: kind, Object: object, ObjectName: name, Host: k.host, By: caller.Name, Requested: time.Now(), Request: caller.Request,
	}}}
	k.mu.Lock()
	k.tasks[t.record.ID] = t
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.tasks, t.record.ID)
	}()
	return f(ctx, t)
}
