package qmp_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
)

const stopped = `{"timestamp": {"seconds": 1700000000, "microseconds": 42}, "event": "STOP"}`

func TestEventsComeInOrderWithQEMUsOwnTime(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		all, some := conn.Subscribe(), conn.Subscribe(qmp.EventMigration, qmp.EventMigrationPass)
		s.say(stopped)
		s.say(`{"timestamp": {"seconds": 1700000001, "microseconds": 0}, "event": "MIGRATION", "data": {"status": "completed"}}`)
		s.say(`{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "MIGRATION_PASS", "data": {"pass": 3}}`)
		s.say(`{"timestamp": {"seconds": 1700000002, "microseconds": 0}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`)

		stop := <-all.C
		if want := time.Unix(1700000000, 42000); stop.Name != qmp.EventStop || !stop.Time.Equal(want) {
			t.Errorf("%s at %v, want STOP at %v", stop.Name, stop.Time, want)
		}
		if stop.Migration() != "" || stop.Pass() != 0 || stop.Cause() != (qmp.Cause{}) {
			t.Error("STOP says what it does not say")
		}
		if ev := <-all.C; ev.Migration() != qmp.MigrationCompleted || !ev.Migration().Ended() {
			t.Errorf("%s says %q", ev.Name, ev.Migration())
		}
		if ev := <-all.C; ev.Pass() != 3 || !ev.Time.IsZero() {
			t.Errorf("%s says %d at %v", ev.Name, ev.Pass(), ev.Time)
		}
		if ev := <-all.C; ev.Cause() != (qmp.Cause{Guest: true, Reason: "guest-shutdown"}) {
			t.Errorf("%s says %+v", ev.Name, ev.Cause())
		}
		for _, want := range []string{qmp.EventMigration, qmp.EventMigrationPass} {
			if ev := <-some.C; ev.Name != want {
				t.Errorf("got %s, want %s", ev.Name, want)
			}
		}
		if len(some.C) > 0 {
			t.Errorf("%s was not asked for", (<-some.C).Name)
		}
		some.Close()
		some.Close()
		if _, open := <-some.C; open || !fault.Is(some.Err(), fault.Canceled) {
			t.Errorf("closed: open %v, %v", open, some.Err())
		}
		if all.Err() != nil {
			t.Errorf("the other one: %v", all.Err())
		}
	})
}

func TestASubscriberThatDoesNotReadStopsNobody(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		lazy, busy := conn.Subscribe(), conn.Subscribe()
		for i := range qmp.EventsQueuedMax + 1 {
			s.say(stopped)
			if ev, open := <-busy.C; !open || ev.Name != qmp.EventStop {
				t.Fatalf("event %d: %v, %v", i, ev, busy.Err())
			}
		}
		seen := 0
		for range lazy.C {
			seen++
		}
		if seen != qmp.EventsQueuedMax || !fault.Is(lazy.Err(), fault.NoResources) {
			t.Errorf("the lazy one saw %d events, then %v", seen, lazy.Err())
		}
		if busy.Err() != nil || conn.Err() != nil {
			t.Errorf("the others: %v, %v", busy.Err(), conn.Err())
		}
	})
}

// Whatever mixture arrives: either every vital event is read, in order, or the subscription has ended with an error.
func TestNoVitalEventIsLostSilently(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var chatter []bool // per event: chatter or vital; in runs, so that queues do fill up
		for range rapid.IntRange(1, 6).Draw(rt, "runs") {
			kind := rapid.Bool().Draw(rt, "chatter")
			chatter = append(chatter, slices.Repeat([]bool{kind}, rapid.IntRange(1, qmp.EventsQueuedMax).Draw(rt, "length"))...)
		}
		wrong := ""
		story(t, func(t *testing.T) {
			conn, s := dial(t)
			events := conn.Subscribe()
			vital := 0
			for _, c := range chatter {
				if c {
					s.say(`{"event": "RTC_CHANGE", "data": {"offset": 1}}`)
					continue
				}
				vital++
				s.say(`{"event": "MIGRATION_PASS", "data": {"pass": %d}}`, vital)
			}
			synctest.Wait() // until the reader has handed on the last one
			conn.Close()
			seen, all := 0, 0
			for ev := range events.C {
				all++
				if ev.Name != qmp.EventMigrationPass {
					continue
				}
				if seen++; ev.Pass() != seen {
					wrong = fmt.Sprintf("event %d follows %d", ev.Pass(), seen-1)
				}
			}
			lost := fault.Is(events.Err(), fault.NoResources)
			switch {
			case lost:
			case seen != vital:
				wrong = fmt.Sprintf("%d of %d vital events, and no error", seen, vital)
			case all+events.Dropped() != len(chatter):
				wrong = fmt.Sprintf("%d seen and %d dropped of %d", all, events.Dropped(), len(chatter))
			}
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}
