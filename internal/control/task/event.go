package task

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of events.
const (
	eventsMax  = 1000        // that wait to be written; beyond it the oldest go, are counted, and the count is an event
	auditsMax  = 1000        // the same for audit events: neither kind drives the other out
	flapBurst  = 5           // events of one kind about one object in a flapWindow; the rest are counted
	flapWindow = time.Minute // then the count is told with the last of them
	flapsMax   = 4096        // objects and kinds that are counted
)

// CallRefused is the kind of audit events about calls of which nothing was executed. A caller that is turned away over and over is counted
// after the first ones, as all that happens over and over; calls that were executed are noted each.
const CallRefused = "call.refused"

// waiting counts the events of one kind, audits or others, in Keeper.events.
type waiting struct {
	queued  int
	dropped int // that were not written, and are not told yet
}

type flapKey struct{ kind, object string }

// flap counts the events of one kind about one object.
type flap struct {
	since time.Time
	seen  int
	last  inventory.Event // the last one that was held back
}

// Event notes that something happened. Time, host, who caused it and the task that it is part of are filled in where they are empty, from
// ctx. It never blocks: it is written later, in order, when the store takes it. Of what happens over and over, flapBurst events of
// a kind about an object are noted in a flapWindow, and then how many more there were. Telemetry does not belong here.
func (k *Keeper) Event(ctx context.Context, e inventory.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.By == "" {
		e.By = CallerOf(ctx).Name
	}
	if t := of(ctx); e.Task == "" && t != nil {
		e.Task = t.record.ID
	}
	e.Host = k.host
	e.Object, e.ObjectName, e.By, e.Message = clean(e.Object), clean(e.ObjectName), clean(e.By), clean(e.Message)
	e.From = clean(e.From)
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.Audit && e.Kind != CallRefused {
		k.note(e)
		return
	}
	key := flapKey{e.Kind, e.Object}
	if e.Audit {
		key.object = e.By + " from " + e.From
	}
	f := k.flaps[key]
	if f == nil || e.Time.Sub(f.since) > flapWindow && f.seen <= flapBurst {
		if len(k.flaps) >= flapsMax {
			clear(k.flaps) // counting anew is the lesser evil
		}
		f = &flap{since: e.Time}
		k.flaps[key] = f
	}
	if f.seen++; f.seen > flapBurst {
		f.last = e
		return
	}
	k.note(e)
}

// note queues the event. The Keeper's lock is held. Events of a host get strictly growing times, by which their ids sort.
func (k *Keeper) note(e inventory.Event) {
	if !e.Time.After(k.last) {
		e.Time = k.last.Add(time.Nanosecond)
	}
	k.last = e.Time
	e.ID = inventory.NewEventID(e.Time)
	waiting, bound := &k.others, eventsMax
	if e.Audit {
		waiting, bound = &k.audits, auditsMax
	}
	if waiting.queued >= bound {
		// The oldest of its kind, wherever it stands: those before it move up by one.
		i := slices.IndexFunc(k.events, func(old inventory.Event) bool { return old.Audit == e.Audit })
		copy(k.events[1:i+1], k.events[:i])
		k.events = k.events[1:]
		waiting.queued--
		waiting.dropped++
	}
	waiting.queued++
	k.events = append(k.events, e)
	k.rouse()
}

// settleFlaps tells the counts of windows that are over.
func (k *Keeper) settleFlaps(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, f := range k.flaps {
		if now.Sub(f.since) <= flapWindow {
			continue
		}
		delete(k.flaps, key)
		if more := f.seen - flapBurst; more > 0 {
			e := f.last
			if more > 1 {
				e.Message += fmt.Sprintf(" (the last of %d more since %s)", more, f.since.UTC().Format(time.TimeOnly))
			}
			k.note(e)
		}
	}
}
