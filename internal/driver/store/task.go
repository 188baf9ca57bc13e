package store

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of what is remembered of the past. Forget brings the store back below them; between two calls there may be as many
// more as were written meanwhile.
const (
	// TasksKept is how many tasks that have ended stay in the store, TaskAgeMax how long.
	TasksKept  = 1000
	TaskAgeMax = 30 * 24 * time.Hour
	// EventsKept is how many events stay in the store, EventAgeMax how long.
	EventsKept  = 5000
	EventAgeMax = 7 * 24 * time.Hour
	// AuditKept is how many audit events stay in the store beside those, AuditAgeMax how long.
	AuditKept   = 5000
	AuditAgeMax = 30 * 24 * time.Hour
	// RequestsKept is how many requests stay in the store, RequestAgeMax how long after they began.
	RequestsKept  = 5000
	RequestAgeMax = 24 * time.Hour
)

// RecordMax is how many tasks, and how many events, one call of Record takes: etcd allows 128 operations in a transaction.
const RecordMax = 40

func noTask(id inventory.TaskID) error {
	return fault.New(fault.NotFound, "no task %q: see godwit task ls", string(id))
}

// Record writes tasks and events in one transaction, whole, as their host knows them; nobody else writes them. It may be
// repeated. More than RecordMax of either is fault.Invalid, and so is text that is not UTF-8.
func (w *Writer) Record(ctx context.Context, tasks []inventory.Task, events []inventory.Event) error {
	if len(tasks) > RecordMax || len(events) > RecordMax {
		return fault.New(fault.Invalid, "record %d tasks and %d events: at most %d at once", len(tasks), len(events), RecordMax)
	}
	var ops []clientv3.Op
	put := func(key, value string, err error) error {
		ops = append(ops, clientv3.OpPut(key, value))
		return err
	}
	for _, t := range tasks {
		if err := checkID("task", t.ID); err != nil {
			return err
		}
		spec, err := taskSpecs.pack(t.Spec)
		if err := put(keyTask(t.ID, partSpec), spec, err); err != nil {
			return fault.Wrap("record", "task "+string(t.ID), err)
		}
		status, err := taskStatuses.pack(t.Status)
		if err := put(keyTask(t.ID, partStatus), status, err); err != nil {
			return fault.Wrap("record", "task "+string(t.ID), err)
		}
	}
	for _, e := range events {
		if err := checkID("event", e.ID); err != nil {
			return err
		}
		value, err := eventRecords.pack(e)
		if err := put(keyEvent(e.ID), value, err); err != nil {
			return fault.Wrap("record", "event "+string(e.ID), err)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	_, err := w.commit(ctx, nil, ops...)
	return err
}

// Tasks returns all tasks as of one moment, newest first.
func (s *Store) Tasks(ctx context.Context) ([]inventory.Task, error) {
	resp, err := s.get(ctx, rootTask, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "tasks", err)
	}
	tasks, err := gatherTasks(resp.Kvs)
	if err != nil {
		return nil, fault.Wrap("list", "tasks", err)
	}
	slices.SortStableFunc(tasks, func(a, b inventory.Task) int { return b.Spec.Requested.Compare(a.Spec.Requested) })
	return tasks, nil
}

// Task returns one task, or fault.NotFound.
func (s *Store) Task(ctx context.Context, id inventory.TaskID) (inventory.Task, error) {
	if checkID("task", id) != nil {
		return inventory.Task{}, noTask(id)
	}
	resp, err := s.get(ctx, keyTask(id, ""), clientv3.WithPrefix())
	if err != nil {
		return inventory.Task{}, fault.Wrap("read", "task "+string(id), err)
	}
	tasks, err := gatherTasks(resp.Kvs)
	if err == nil && len(tasks) == 0 {
		return inventory.Task{}, noTask(id)
	}
	if err != nil {
		return inventory.Task{}, fault.Wrap("read", "task "+string(id), err)
	}
	return tasks[0], nil
}

func gatherTasks(kvs []*mvccpb.KeyValue) ([]inventory.Task, error) {
	var tasks []inventory.Task
	for _, kv := range kvs { // the spec comes before the status
		key := string(kv.GetKey())
		id, part := split(rootTask, key)
		switch part {
		case partSpec:
			spec, err := read(taskSpecs, key, kv)
			if err != nil {
				return nil, err
			}
			tasks = append(tasks, inventory.Task{ID: inventory.TaskID(id), Spec: spec})
		case partStatus:
			status, err := read(taskStatuses, key, kv)
			if err != nil {
				return nil, err
			}
			if n := len(tasks); n > 0 && tasks[n-1].ID == inventory.TaskID(id) {
				tasks[n-1].Status = status
			}
		}
	}
	return tasks, nil
}

// Events returns all events as of one moment, oldest first.
func (s *Store) Events(ctx context.Context) ([]inventory.Event, error) {
	events, _, err := s.events(ctx, nil)
	return events, err
}

// events returns all events, oldest first or in the order asked for, and the revision at which they are all.
func (s *Store) events(ctx context.Context, order func(a, b *mvccpb.KeyValue) int) ([]inventory.Event, int64, error) {
	resp, err := s.get(ctx, rootEvent, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fault.Wrap("list", "events", err)
	}
	if order != nil {
		slices.SortStableFunc(resp.Kvs, order)
	}
	events := make([]inventory.Event, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		e, err := readEvent(kv)
		if err != nil {
			return nil, 0, fault.Wrap("list", "events", err)
		}
		events = append(events, e)
	}
	return events, resp.Header.GetRevision(), nil
}

// asWritten orders records as they were written, as a watch has them.
func asWritten(a, b *mvccpb.KeyValue) int {
	return cmp.Compare(a.GetCreateRevision(), b.GetCreateRevision())
}

func readEvent(kv *mvccpb.KeyValue) (inventory.Event, error) {
	key := string(kv.GetKey())
	e, err := read(eventRecords, key, kv)
	id, _ := split(rootEvent, key)
	e.ID = inventory.EventID(id)
	return e, err
}

// FollowEvents calls past once with the events that there are, oldest first, and then next with each further one, in the order in which
// they are written: an event that its host could not write for a while comes late. While the store is away it is silent, and nothing is
// lost of what is still there afterwards. It returns the error of the first look, past or next, or nil when ctx ended.
func (s *Store) FollowEvents(ctx context.Context, past func([]inventory.Event) error, next func(inventory.Event) error) error {
	events, revision, err := s.events(ctx, nil)
	if err != nil {
		return err
	}
	if err := past(events); err != nil {
		return err
	}
	known := map[inventory.EventID]bool{}
	for _, e := range events {
		known[e.ID] = true
	}
	for {
		at, err := s.followFrom(ctx, revision, func(e inventory.Event) error {
			if known[e.ID] {
				return nil
			}
			if known[e.ID] = true; len(known) > 2*(EventsKept+AuditKept) {
				forgetOldest(known)
			}
			return next(e)
		})
		if err != nil || ctx.Err() != nil {
			return err
		}
		// The watch broke: it may go on where it was, or else what there is now is looked through.
		revision = at
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchRetry):
		}
		events, now, err := s.events(ctx, asWritten)
		if err != nil {
			continue
		}
		still := map[inventory.EventID]bool{}
		for _, e := range events {
			if !known[e.ID] {
				if err := next(e); err != nil {
					return err
				}
			}
			still[e.ID] = true
		}
		known, revision = still, now
	}
}

// forgetOldest removes half of the ids, those of the oldest events.
func forgetOldest(known map[inventory.EventID]bool) {
	for _, id := range slices.Sorted(maps.Keys(known))[:len(known)/2] {
		delete(known, id)
	}
}

// followFrom hands out the events that are written after the revision, until the watch breaks.
func (s *Store) followFrom(ctx context.Context, revision int64, next func(inventory.Event) error) (int64, error) {
	following, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.client.Watch(following, rootEvent, clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithFilterDelete()) {
		if resp.Err() != nil {
			break
		}
		for _, change := range resp.Events {
			e, err := readEvent(change.Kv)
			if err != nil {
				return revision, err
			}
			if err := next(e); err != nil {
				return revision, err
			}
		}
		revision = max(revision, resp.Header.GetRevision())
	}
	return revision, nil
}

// Forget removes what is too old, or too much: ended tasks, events, requests, migrations that are over, and expired tokens. Tasks and
// migrations that have not ended stay, whatever their age, for their hosts to end them.
func (w *Writer) Forget(ctx context.Context, now time.Time) error {
	var keys []string
	tasks, err := w.s.Tasks(ctx)
	if err != nil {
		return err
	}
	ended := 0
	for _, t := range tasks {
		if !t.Status.State.Final() {
			continue
		}
		if ended++; ended > w.s.tasksKept || now.Sub(t.Status.Ended) > TaskAgeMax {
			keys = append(keys, keyTask(t.ID, partSpec), keyTask(t.ID, partStatus))
		}
	}
	events, err := w.s.Events(ctx)
	if err != nil {
		return err
	}
	others, audits := 0, 0 // newer than the one that is looked at, and itself
	for _, e := range slices.Backward(events) {
		count, kept, ageMax := &others, w.s.eventsKept, EventAgeMax
		if e.Audit {
			count, kept, ageMax = &audits, w.s.auditKept, AuditAgeMax
		}
		if *count++; *count > kept || now.Sub(e.Time) > ageMax {
			keys = append(keys, keyEvent(e.ID))
		}
	}
	requests, err := w.s.requests(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(requests, func(a, b inventory.Request) int { return b.Begun.Compare(a.Begun) })
	for i, r := range requests {
		if i >= w.s.requestsKept || now.Sub(r.Begun) > RequestAgeMax {
			keys = append(keys, keyRequest(r.Key))
		}
	}
	for batch := range slices.Chunk(keys, 2*pruneBatch) {
		var ops []clientv3.Op
		for _, key := range batch {
			ops = append(ops, clientv3.OpDelete(key))
		}
		if _, err := w.commit(ctx, nil, ops...); err != nil {
			return err
		}
	}
	if err := w.forgetOldMigrations(ctx, now); err != nil {
		return err
	}
	_, err = w.forgetOldTokens(ctx)
	return err
}
