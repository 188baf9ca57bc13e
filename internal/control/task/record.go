package task

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Records is what the Keeper needs of the store (driver/store has it). Calls may be repeated; each is given up when ctx ends.
type Records interface {
	// Record writes tasks and events, all or nothing.
	Record(ctx context.Context, tasks []inventory.Task, events []inventory.Event) error
	// Forget removes what is too old or too much.
	Forget(ctx context.Context, now time.Time) error
	// Request returns a request, and whether the agent that executed it ended without an answer; fault.NotFound for a new key.
	Request(ctx context.Context, key string) (r inventory.Request, dead bool, err error)
	// ClaimRequest records that this host executes the request, unless another does or did; it returns what the record is then.
	ClaimRequest(ctx context.Context, r inventory.Request, again bool) (inventory.Request, bool, error)
	// UpdateRequest changes the record of a request that this host executes.
	UpdateRequest(ctx context.Context, key string, change func(*inventory.Request)) error
	// DropRequest forgets a request that this host executes.
	DropRequest(ctx context.Context, key string) error
	// Answers reports whether another host's agent answers.
	Answers(ctx context.Context, host inventory.HostID) bool
}

// The pace of writing.
const (
	settleTime    = 100 * time.Millisecond // what belongs together is written together: a short task once
	progressEvery = 5 * time.Second        // between two writes of a task's progress
	houseEvery    = time.Second
	retryFirst    = 500 * time.Millisecond
	retryMax      = 5 * time.Second
	writeMax      = 5 * time.Second // one call
	batchMax      = 40              // tasks, and events, in one call
	forgetEvery   = 10 * time.Minute
	forgetAfter   = 50                     // ended tasks or events since the last time, whatever the time
	forgetFirst   = 10 * time.Second       // after the start
	endMax        = time.Second            // for tasks to end with the agent
	flushMax      = 300 * time.Millisecond // for the last writes, when the store is away
	answerWait    = time.Second            // for a request's answer to be written before its caller has it
	lateMax       = 1000                   // answers that wait to be written
)

// KeepIn says where tasks, events and requests are written.
func (k *Keeper) KeepIn(records Records, log *slog.Logger) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.records, k.log = records, log
}

// Serve writes tasks and events until ctx ends; then it ends the tasks, writes the last of them, and returns. Further tasks are refused.
func (k *Keeper) Serve(ctx context.Context) {
	w := &writing{k: k, written: forgetAfter}
	house := time.NewTicker(houseEvery)
	defer house.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	progress, forget := time.Now(), time.Now().Add(forgetFirst)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-k.wake:
			timer.Reset(max(settleTime, w.pause))
		case <-timer.C:
			if w.all(ctx); w.pause > 0 {
				timer.Reset(w.pause)
			}
		case now := <-house.C:
			k.settleFlaps(now)
			if now.Sub(progress) >= progressEvery {
				progress = now
				k.saveProgress()
			}
			if w.written >= forgetAfter && now.After(forget) || now.Sub(forget) > forgetEvery {
				forget = now
				w.forget(ctx)
			}
		}
	}
	k.close()
	within, done := context.WithTimeout(context.WithoutCancel(ctx), flushMax)
	defer done()
	w.all(within)
}

// close ends the tasks and waits for them.
func (k *Keeper) close() {
	k.mu.Lock()
	k.ending = true
	idle := make(chan struct{})
	if k.active == 0 {
		close(idle)
	} else {
		k.idle = idle
	}
	for _, t := range k.tasks {
		t.cancel(errAgentEnds)
	}
	k.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(endMax):
	}
}

// saveProgress queues the tasks that have moved on.
func (k *Keeper) saveProgress() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.tasks {
		t.mu.Lock()
		moved := t.moved
		t.mu.Unlock()
		if moved {
			k.save(t)
		}
	}
}

// writing is Serve's hold of the store.
type writing struct {
	k       *Keeper
	pause   time.Duration // before the next try; 0: all is written
	said    string        // the last failure
	written int           // since the last Forget
}

// all writes what is queued, until that is nothing or the store does not take it.
func (w *writing) all(ctx context.Context) {
	k := w.k
	for {
		k.mu.Lock()
		records := k.records
		k.trim()
		tasks := k.unsaved[:min(batchMax, len(k.unsaved))]
		events := slices.Clone(k.events[:min(batchMax, len(k.events))])
		answers := k.late
		k.mu.Unlock()
		if records == nil || len(tasks)+len(events)+len(answers) == 0 {
			w.pause = 0
			return
		}
		if !w.result(ctx, w.batch(ctx, records, tasks, events)) || !w.result(ctx, k.writeLate(ctx, records)) {
			return
		}
	}
}

// result takes note of how a write went and reports whether to go on.
func (w *writing) result(ctx context.Context, err error) bool {
	if err == nil {
		w.pause, w.said = 0, ""
		return true
	}
	w.pause = min(max(2*w.pause, retryFirst), retryMax)
	if text := err.Error(); text != w.said && ctx.Err() == nil {
		w.said = text
		w.k.log.LogAttrs(ctx, slog.LevelWarn, "tasks and events not stored, will be again", slog.Any("err", err))
	}
	return false
}

// batch writes the first tasks and events of the queues, and takes them out when that worked. What the store will never take is dropped.
func (w *writing) batch(ctx context.Context, records Records, tasks []*Task, events []inventory.Event) error {
	k := w.k
	snapshots := make([]inventory.Task, len(tasks))
	k.mu.Lock()
	for i, t := range tasks {
		t.queued = false // a change from here on queues it again
		t.mu.Lock()
		t.moved = false
		t.mu.Unlock()
		snapshots[i] = t.snapshot()
	}
	k.unsaved = k.unsaved[len(tasks):]
	others, audits := k.others.dropped, k.audits.dropped
	if len(events) > 0 {
		told := k.lost(events[0].Time, others, audits)
		events = append(told, events[:min(len(events), batchMax-len(told))]...)
	}
	k.mu.Unlock()
	within, done := context.WithTimeout(ctx, writeMax)
	defer done()
	err := records.Record(within, snapshots, events)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Internal) {
		var again []*Task
		for _, t := range tasks {
			if !t.queued {
				t.queued = true
				again = append(again, t)
			}
		}
		k.unsaved = append(again, k.unsaved...)
		return err
	}
	if err != nil {
		k.log.LogAttrs(ctx, slog.LevelError, "tasks and events lost", slog.Int("tasks", len(tasks)), slog.Int("events", len(events)), slog.Any("err", err))
	}
	k.others.dropped -= others
	k.audits.dropped -= audits
	w.written += len(snapshots) + len(events)
	written := map[inventory.EventID]bool{}
	for _, e := range events {
		written[e.ID] = true
	}
	rest := 0
	for rest < len(k.events) && written[k.events[rest].ID] {
		if k.events[rest].Audit {
			k.audits.queued--
		} else {
			k.others.queued--
		}
		rest++
	}
	k.events = append([]inventory.Event(nil), k.events[rest:]...)
	for i, t := range tasks {
		if snapshots[i].Status.State.Final() && !t.kept {
			t.kept = true
			k.ended = append(k.ended, t)
		}
	}
	for len(k.ended) > endedKept {
		delete(k.tasks, k.ended[0].record.ID)
		k.ended = k.ended[1:]
	}
	return nil
}

// lost tells in events before a time how many were dropped. The numbers of the two kinds are told apart, and that of audits among audits.
func (k *Keeper) lost(before time.Time, others, audits int) []inventory.Event {
	var told []inventory.Event
	tell := func(n int, audit bool, what string) {
		if n == 0 {
			return
		}
		before = before.Add(-time.Nanosecond)
		told = append([]inventory.Event{{
			ID: inventory.NewEventID(before), Kind: "events.dropped", Severity: inventory.Warning, Audit: audit, Host: k.host, Time: before,
			Message: fmt.Sprintf("%d %s of about this time were lost: the store was away for too long", n, what),
		}}, told...)
	}
	tell(audits, true, "audit events")
	tell(others, false, "events")
	return told
}

// trim drops the oldest tasks that have ended when too many wait to be written, and says so. The Keeper's lock is held.
func (k *Keeper) trim() {
	lost := 0
	for len(k.unsaved) > unsavedMax+k.active {
		t := k.unsaved[0]
		k.unsaved = k.unsaved[1:]
		t.queued = false
		if t.snapshot().Status.State.Final() {
			delete(k.tasks, t.record.ID)
			lost++
		}
	}
	if lost > 0 {
		k.note(inventory.Event{
			Time: time.Now(), Host: k.host, Kind: "tasks.dropped", Severity: inventory.Warning,
			Message: fmt.Sprintf("the records of %d tasks were lost: the store was away for too long", lost),
		})
	}
}

// writeLate writes the answers that could not be written when they were given.
func (k *Keeper) writeLate(ctx context.Context, records Records) error {
	for {
		k.mu.Lock()
		if len(k.late) == 0 {
			k.mu.Unlock()
			return nil
		}
		write := k.late[0]
		k.mu.Unlock()
		within, done := context.WithTimeout(ctx, writeMax)
		err := write(within, records)
		done()
		if err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
			return err // those two mean that it is not ours any more
		}
		k.mu.Lock()
		k.late = k.late[1:]
		k.mu.Unlock()
	}
}

// writeSoon queues an answer.
func (k *Keeper) writeSoon(write func(context.Context, Records) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.late) >= lateMax {
		k.late = k.late[1:] // its repeat is executed again
	}
	k.late = append(k.late, write)
	k.rouse()
}

// forget has the store brought below its bounds.
func (w *writing) forget(ctx context.Context) {
	w.k.mu.Lock()
	records := w.k.records
	w.k.mu.Unlock()
	if records == nil {
		return
	}
	w.written = 0
	if err := records.Forget(ctx, time.Now()); err != nil && ctx.Err() == nil {
		w.k.log.LogAttrs(ctx, slog.LevelWarn, "old tasks and events not forgotten yet", slog.Any("err", err))
	}
}
