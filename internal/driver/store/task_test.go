package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func someTask(state inventory.TaskState, requested time.Time) inventory.Task {
	t := inventory.Task{ID: inventory.NewTaskID(), Spec: inventory.TaskSpec{
		Kind: "vm.start", Object: "vm-1", ObjectName: "web-1", Host: "host-1", By: "root", Requested: requested.UTC(),
	}, Status: inventory.TaskStatus{State: state, Started: requested.UTC()}}
	if state.Final() {
		t.Status.Ended = requested.Add(time.Second).UTC()
	}
	return t
}

func someEvent(at time.Time, message string) inventory.Event {
	return inventory.Event{ID: inventory.NewEventID(at), Time: at.UTC(), Kind: "vm.started", Object: "vm-1", ObjectName: "web-1", Host: "host-1", Message: message}
}

func TestTasksAndEventsComeBackAndOldOnesGo(t *testing.T) {
	s, w := start(t)
	s.SetKept(3, 4, 2)
	now := time.Now()
	old, open := someTask(inventory.TaskFailed, now.Add(-31*24*time.Hour)), someTask(inventory.TaskRunning, now.Add(-40*24*time.Hour))
	old.Status.Reason, old.Status.Reasons = "two reasons", []string{"one", "two"}
	must(t, w.Record(t.Context(), []inventory.Task{old, open}, nil))
	if got, err := s.Task(t.Context(), old.ID); err != nil || fmt.Sprint(got) != fmt.Sprint(old) {
		t.Errorf("wrote %v\nread  %v, %v", old, got, err)
	}
	var tasks []inventory.Task
	var events []inventory.Event
	for i := range 5 {
		tasks = append(tasks, someTask(inventory.TaskSucceeded, now.Add(time.Duration(i)*time.Minute)))
		events = append(events, someEvent(now.Add(time.Duration(i)*time.Minute), fmt.Sprint(i)))
	}
	aged := someEvent(now.Add(-8*24*time.Hour), "aged")
	must(t, w.Record(t.Context(), tasks, append(events, aged)))
	must(t, w.Record(t.Context(), tasks, append(events, aged))) // whose answer was lost
	all, err := s.Events(t.Context())
	must(t, err)
	if len(all) != 6 || all[0].Message != "aged" || !slices.IsSortedFunc(all, func(a, b inventory.Event) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("events are not in the order of their time: %v", all)
	}
	for i := range 3 {
		_, claimed, err := w.ClaimRequest(t.Context(), inventory.Request{Key: fmt.Sprint("k", i), Begun: now.Add(time.Duration(i) * time.Second)}, false)
		if must(t, err); !claimed {
			t.Error("a new key was not claimed")
		}
	}
	must(t, w.Forget(t.Context(), now))
	left, err := s.Tasks(t.Context())
	must(t, err)
	want := []inventory.TaskID{tasks[4].ID, tasks[3].ID, tasks[2].ID, open.ID} // newest first; what has not ended stays
	if !slices.EqualFunc(left, want, func(t inventory.Task, id inventory.TaskID) bool { return t.ID == id }) {
		t.Errorf("left are %v, not %v", left, want)
	}
	if all, err = s.Events(t.Context()); err != nil || len(all) != 4 || all[0].Message != "1" {
		t.Errorf("left are the events %v, %v", all, err)
	}
	if _, _, err := w.Request(t.Context(), "k0"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the oldest of three requests: %v", err)
	}
	if err := w.Record(t.Context(), make([]inventory.Task, store.RecordMax+1), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("too much at once: %v", err)
	}
	full := make([]inventory.Task, store.RecordMax)
	for i := range full {
		full[i] = someTask(inventory.TaskSucceeded, now)
	}
	var many []inventory.Event
	for i := range store.RecordMax {
		many = append(many, someEvent(now.Add(time.Duration(i)), "many"))
	}
	must(t, w.Record(t.Context(), full, many)) // as much as there may be fits into one transaction
}

// The story: whoever follows events sees each one once, also those that are written while the store was away for the follower.
func TestEventsAreFollowedOverARestartOfTheStore(t *testing.T) {
	m := startMember(t)
	s := m.open(t)
	w := writer(t, s, "host-1")
	now := time.Now()
	must(t, w.Record(t.Context(), nil, []inventory.Event{someEvent(now, "past")}))
	seen := make(chan string, 16)
	ctx, done := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	joined := make(chan struct{})
	go func() {
		ended <- s.FollowEvents(ctx, func(past []inventory.Event) error {
			for _, e := range past {
				seen <- e.Message
			}
			close(joined)
			return nil
		}, func(e inventory.Event) error { seen <- e.Message; return nil })
	}()
	<-joined
	for i := range 3 {
		must(t, w.Record(t.Context(), nil, []inventory.Event{someEvent(now.Add(time.Duration(3-i)*time.Minute), fmt.Sprint(i))}))
	}
	m.halt(t)
	m.start(t)
	must(t, w.Record(t.Context(), nil, []inventory.Event{someEvent(now.Add(-time.Minute), "late")})) // of before
	expectSeen(t, seen, "past", "0", "1", "2", "late")
	done()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	refused := errors.New("enough")
	if err := s.FollowEvents(t.Context(), func([]inventory.Event) error { return refused }, nil); !errors.Is(err, refused) {
		t.Errorf("the follower's own error: %v", err)
	}
}

// expectSeen reads what a follower has seen.
func expectSeen(t *testing.T, seen <-chan string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("saw %q, not %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%q is not seen", want)
		}
	}
}

// The story: a follower is so slow that the store has compacted what it has not seen yet, and its watch cannot go on from there. It sees all of it
// nevertheless, in the order in which it was written, which is not that of the events' times.
func TestEventsThatWereCompactedComeAsTheyWereWritten(t *testing.T) {
	s, w := start(t)
	now := time.Now()
	seen := make(chan string, 16)
	ctx, done := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	looked, released := make(chan struct{}), make(chan struct{})
	go func() {
		ended <- s.FollowEvents(ctx, func([]inventory.Event) error {
			close(looked)
			<-released
			return nil
		}, func(e inventory.Event) error { seen <- e.Message; return nil })
	}()
	<-looked
	for i := range 3 {
		must(t, w.Record(t.Context(), nil, []inventory.Event{someEvent(now.Add(time.Duration(3-i)*time.Minute), fmt.Sprint(i))}))
	}
	h, err := s.Health(t.Context())
	must(t, err)
	must(t, s.Compact(t.Context(), h.Revision))
	close(released)
	expectSeen(t, seen, "0", "1", "2")
	done()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The story: of many who claim a key at once one gets it; when that one's agent is started again, one of the others takes over and knows
// what it was about to make; an answer is final.
func TestOneOfManyClaimsARequest(t *testing.T) {
	s, w := start(t)
	other := writer(t, s, "host-2")
	r := inventory.Request{Key: "k", Procedure: "/create", Hash: []byte{1, 2}, Begun: time.Now().UTC()}
	race := func(again bool, writers ...*store.Writer) (winner *store.Writer, record inventory.Request) {
		t.Helper()
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, by := range writers {
			for range 3 {
				all.Go(func() {
					got, claimed, err := by.ClaimRequest(t.Context(), r, again)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Error(err)
					}
					if claimed {
						if winner != nil {
							t.Errorf("%s and %s both claimed it", winner.Host(), by.Host())
						}
						winner, record = by, got
					}
				})
			}
		}
		all.Wait()
		if winner == nil {
			t.Fatal("nobody claimed it")
		}
		return winner, record
	}
	first, record := race(false, w, other)
	if !record.Begun.Equal(r.Begun) || record.Host != first.Host() {
		t.Errorf("claimed %v as %v", r, record)
	}
	must(t, first.UpdateRequest(t.Context(), "k", func(r *inventory.Request) { r.Made = []string{"disk"} }))
	second := w
	if first == w {
		second = other
	}
	if _, dead, err := second.Request(t.Context(), "k"); err != nil || dead {
		t.Errorf("its agent lives: dead %v, %v", dead, err)
	}
	if err := second.UpdateRequest(t.Context(), "k", func(*inventory.Request) {}); !fault.Is(err, fault.Conflict) {
		t.Errorf("another host changed it: %v", err)
	}
	restarted := writer(t, s, first.Host())
	if _, dead, err := second.Request(t.Context(), "k"); err != nil || !dead {
		t.Errorf("its agent was started again: dead %v, %v", dead, err)
	}
	mismatch := r
	mismatch.Hash = []byte{3}
	if got, claimed, err := second.ClaimRequest(t.Context(), mismatch, false); err != nil || claimed || got.Hash[0] != 1 {
		t.Errorf("another call took the key over: %v, %v, %v", got, claimed, err)
	}
	r.Begun = r.Begun.Add(time.Hour)
	heir, record := race(false, restarted, second)
	if !slices.Equal(record.Made, []string{"disk"}) || record.Begun.Equal(r.Begun) {
		t.Errorf("who takes over knows %v", record)
	}
	if err := first.UpdateRequest(t.Context(), "k", func(*inventory.Request) {}); !errors.Is(err, store.ErrEpochOver) && !fault.Is(err, fault.Conflict) {
		t.Errorf("the former agent changed it: %v", err)
	}
	must(t, heir.UpdateRequest(t.Context(), "k", func(r *inventory.Request) { r.Done, r.Answer = true, []byte("made") }))
	if got, claimed, err := second.ClaimRequest(t.Context(), r, true); err != nil || claimed || string(got.Answer) != "made" {
		t.Errorf("after the answer: %v, %v, %v", got, claimed, err)
	}
	must(t, heir.DropRequest(t.Context(), "k"))
	if _, _, err := heir.Request(t.Context(), "k"); err != nil {
		t.Errorf("an answer was dropped: %v", err)
	}
	for _, key := range []string{"", "a b", "a/b", string(make([]byte, 200))} {
		if _, _, err := w.ClaimRequest(t.Context(), inventory.Request{Key: key}, false); !fault.Is(err, fault.Invalid) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}
