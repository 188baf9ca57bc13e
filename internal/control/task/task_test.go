package task_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// serve returns a Keeper that writes to the shelf, and how to end its agent.
func serve(s *shelf, host inventory.HostID) (k *task.Keeper, end func()) {
	k = task.New(host)
	k.KeepIn(s.start(host), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		k.Serve(ctx)
	}()
	return k, func() { cancel(); <-over }
}

// by is a context of somebody's call.
func by(ctx context.Context, name string) context.Context {
	return task.WithCaller(ctx, task.Caller{Name: name})
}

// only returns the one task on the shelf.
func (s *shelf) only(t *testing.T) inventory.Task {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) != 1 {
		t.Fatalf("there are %d tasks", len(s.tasks))
	}
	for _, each := range s.tasks {
		return each
	}
	return inventory.Task{}
}

func TestATaskGoesOnWithoutItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		k, end := serve(s, "host-1")
		defer end()
		ctx, leave := context.WithCancel(by(t.Context(), "root"))
		err := k.Run(ctx, "vm.stop", "vm-1", "web-1", func(ctx context.Context, tk *task.Task) error {
			leave()
			time.Sleep(30 * time.Minute)
			tk.Progress(1, 2, "half")
			time.Sleep(30 * time.Minute)
			tk.Result("vm-1")
			return ctx.Err()
		})
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
		time.Sleep(time.Second)
		got := s.only(t)
		if st := got.Status; st.State != inventory.TaskSucceeded || st.Result != "vm-1" || st.Done != 1 || st.Ended.Sub(st.Started) != time.Hour {
			t.Errorf("the record says %+v", st)
		}
		if sp := got.Spec; sp.Kind != "vm.stop" || sp.Object != "vm-1" || sp.ObjectName != "web-1" || sp.By != "root" || sp.Host != "host-1" {
			t.Errorf("the record says %+v", sp)
		}
		if s.writes[got.ID] != 3 { // begun, progress, over
			t.Errorf("it was written %d times", s.writes[got.ID])
		}
	})
}

func TestAShortTaskIsWrittenOnceWithItsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		k, end := serve(s, "host-1")
		defer end()
		before := time.Now()
		_ = k.Run(by(t.Context(), "root"), "vm.start", "vm-1", "web-1", func(ctx context.Context, _ *task.Task) error {
			k.Event(ctx, inventory.Event{Kind: "vm.started", Object: "vm-1"})
			return nil
		})
		if waited := time.Since(before); waited != 0 {
			t.Errorf("the task waited %v for the store", waited)
		}
		time.Sleep(time.Second)
		got := s.only(t)
		if s.calls != 1 || len(s.events) != 2 || s.events[0].Task != got.ID || s.events[0].By != "root" || s.events[0].Host != "host-1" || s.events[1].Kind != "task.succeeded" {
			t.Errorf("%d writes, events %+v", s.calls, s.events)
		}
		if s.events[0].ID >= s.events[1].ID {
			t.Errorf("event ids do not sort: %s, %s", s.events[0].ID, s.events[1].ID)
		}
	})
}

func TestATaskThatFailsSaysAllItsReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		k, end := serve(s, "host-1")
		defer end()
		refusal := fault.Wrap("migrate", "vm web-1", fault.Refuse(fault.Incompatible, []string{"no memory", "no cpu\xff\nline"}))
		if err := k.Run(t.Context(), "vm.migrate", "vm-1", "", func(context.Context, *task.Task) error { return refusal }); !errors.Is(err, refusal) {
			t.Errorf("its caller got %v", err)
		}
		time.Sleep(time.Second)
		st := s.only(t).Status
		if st.State != inventory.TaskFailed || !slices.Equal(st.Reasons, []string{"no memory", "no cpu? line"}) || !strings.HasPrefix(st.Reason, "migrate vm web-1: no memory") {
			t.Errorf("the record says %+v", st)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, end := serve(newShelf(), "host-1")
		defer end()
		run := func(f func(ctx context.Context, tk *task.Task) error) (inventory.TaskID, <-chan error) {
			begun, over := make(chan inventory.TaskID), make(chan error, 1)
			go func() {
				over <- k.Run(t.Context(), "vm.stop", "vm-1", "", func(ctx context.Context, tk *task.Task) error {
					begun <- tk.ID()
					return f(ctx, tk)
				})
			}()
			return <-begun, over
		}
		wait := func(ctx context.Context, _ *task.Task) error {
			<-ctx.Done()
			return fault.Wrap("stop", "vm web-1", ctx.Err())
		}

		id, over := run(wait)
		got, err := k.Cancel(by(t.Context(), "root"), id)
		if err != nil || got.Status.State != inventory.TaskCanceled || !got.Spec.Canceled || got.Status.Reason != string(id)+" was canceled by root" {
			t.Errorf("canceled: %+v, %v", got, err)
		}
		if err := <-over; !fault.Is(err, fault.Canceled) {
			t.Errorf("its caller got %v", err)
		}
		if _, err = k.Cancel(t.Context(), id); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "it is over: canceled") {
			t.Errorf("canceled twice: %v", err)
		}

		id, over = run(func(ctx context.Context, _ *task.Task) error { <-ctx.Done(); return nil }) // it was done already
		if _, err = k.Cancel(t.Context(), id); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "too late: it succeeded") || <-over != nil {
			t.Errorf("canceled too late: %v", err)
		}

		late := fault.New(fault.Conflict, "it was released")
		release := make(chan struct{})
		id, over = run(func(ctx context.Context, tk *task.Task) error {
			tk.OnCancel(func(context.Context) error { return late })
			<-release
			return ctx.Err()
		})
		synctest.Wait()
		if _, err = k.Cancel(t.Context(), id); !errors.Is(err, late) {
			t.Errorf("a task with a way of its own: %v", err)
		}
		close(release)
		if err := <-over; err != nil {
			t.Errorf("it did not go on: %v", err)
		}

		if _, err = k.Cancel(t.Context(), "task-9"); !fault.Is(err, fault.NotFound) {
			t.Errorf("one that never was: %v", err)
		}
	})
}

func TestTheEndOfTheAgentEndsItsTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		k, end := serve(s, "host-1")
		errs := make(chan error, 2)
		go func() {
			errs <- k.Run(t.Context(), "vm.stop", "vm-1", "", func(ctx context.Context, _ *task.Task) error { <-ctx.Done(); return ctx.Err() })
		}()
		var migration inventory.TaskID
		go func() {
			errs <- k.Run(t.Context(), "vm.migrate", "vm-2", "", func(ctx context.Context, tk *task.Task) error {
				migration = tk.ID()
				<-ctx.Done()
				return task.ErrGoesOn
			})
		}()
		synctest.Wait()
		end()
		for range 2 {
			if err := <-errs; !fault.Is(err, fault.Unavailable) {
				t.Errorf("a caller got %v", err)
			}
		}
		if err := k.Run(t.Context(), "vm.stop", "vm-1", "", nil); !fault.Is(err, fault.Unavailable) {
			t.Errorf("one more: %v", err)
		}
		for id, got := range s.tasks {
			want := inventory.TaskFailed
			if id == migration {
				want = inventory.TaskRunning
			}
			if got.Status.State != want {
				t.Errorf("%s is %v in the store", got.Spec.Kind, got.Status.State)
			}
		}
		// The next agent takes it up.
		next, end := serve(s, "host-1")
		if err := next.Resume(t.Context(), s.tasks[migration], func(context.Context, *task.Task) error { return nil }); err != nil {
			t.Error(err)
		}
		end()
		if got := s.tasks[migration].Status; got.State != inventory.TaskSucceeded {
			t.Errorf("resumed, it is %v", got.State)
		}
	})
}

func TestTasksBeyondTheBoundWaitAndThenAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, end := serve(newShelf(), "host-1")
		defer end()
		release := make(chan struct{})
		var all sync.WaitGroup
		for range 1152 {
			all.Go(func() {
				_ = k.Run(t.Context(), "a", "", "", func(context.Context, *task.Task) error { <-release; return nil })
			})
		}
		synctest.Wait()
		count := map[inventory.TaskState]int{}
		for _, each := range k.Tasks() {
			count[each.Status.State]++
		}
		if count[inventory.TaskRunning] != 128 || count[inventory.TaskQueued] != 1024 {
			t.Errorf("tasks %v", count)
		}
		if err := k.Run(t.Context(), "a", "", "", nil); !fault.Is(err, fault.NoResources) {
			t.Errorf("one more: %v", err)
		}
		close(release)
		all.Wait()
	})
}

// However many calls come while the store is away, what happens to VMs is not lost for it, nor the other way round.
func TestAuditsDriveNothingOut(t *testing.T) {
	for _, flood := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf()
			k, end := serve(s, "host-1")
			s.setAway(true)
			for i := range 10 {
				k.Event(t.Context(), inventory.Event{Kind: "few", Object: fmt.Sprint("a-", i), Audit: !flood})
			}
			for i := range 2500 {
				k.Event(t.Context(), inventory.Event{Kind: "many", Object: fmt.Sprint("b-", i), Audit: flood})
				if i%500 == 0 {
					time.Sleep(time.Minute) // in which it is tried to write them
				}
			}
			s.setAway(false)
			time.Sleep(10 * time.Second)
			end()
			kinds := map[string]int{}
			for _, e := range s.events {
				kinds[e.Kind]++
				if e.Kind == "events.dropped" && (e.Audit != flood || !strings.HasPrefix(e.Message, "1500 ")) {
					t.Errorf("%+v", e)
				}
			}
			if kinds["few"] != 10 || kinds["many"] != 1000 || kinds["events.dropped"] != 1 {
				t.Errorf("of audits %v: %v", flood, kinds)
			}
			if !slices.IsSortedFunc(s.events, func(a, b inventory.Event) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
				t.Error("events are not in order")
			}
			if last := s.events[len(s.events)-1]; last.Object != "b-2499" {
				t.Errorf("the last is %+v", last)
			}
		})
	}
}

func TestTheStoreMayBeAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		k, end := serve(s, "host-1")
		s.setAway(true)
		for i := range 1300 {
			k.Event(t.Context(), inventory.Event{Kind: "vm.started", Object: fmt.Sprint("vm-", i)})
		}
		before := time.Now()
		if err := k.Run(t.Context(), "vm.stop", "vm-1", "", func(context.Context, *task.Task) error { return nil }); err != nil || time.Since(before) != 0 {
			t.Errorf("it cost %v and ended with %v", time.Since(before), err)
		}
		time.Sleep(time.Hour)
		s.setAway(false)
		time.Sleep(10 * time.Second)
		if got := s.only(t).Status.State; got != inventory.TaskSucceeded {
			t.Errorf("the task is %v in the store", got)
		}
		if len(s.events) != 1001 || s.events[0].Kind != "events.dropped" || !strings.HasPrefix(s.events[0].Message, "301 events") {
			t.Errorf("%d events, the first %+v", len(s.events), s.events[0])
		}
		if !slices.IsSortedFunc(s.events, func(a, b inventory.Event) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
			t.Error("events are not in order")
		}
		if s.most > 40 {
			t.Errorf("%d in one write", s.most)
		}
		end()
	})
}

func TestWhatFlapsDoesNotFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		k, end := serve(s, "host-1")
		for i := range 6000 { // for ten minutes
			k.Event(t.Context(), inventory.Event{Kind: "vm.paused", Object: "vm-1", Message: fmt.Sprint("disk failed ", i)})
			k.Event(t.Context(), inventory.Event{Kind: "vm.resumed", Object: fmt.Sprint("vm-", i)}) // many objects once
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		end()
		flaps, more := 0, 0
		for _, e := range s.events {
			if e.Kind == "vm.paused" {
				flaps++
				if strings.Contains(e.Message, "more since") {
					more++
				}
			}
		}
		if flaps < 50 || flaps > 66 || more < 9 {
			t.Errorf("6000 events of one kind about one object became %d, %d of them counts", flaps, more)
		}
		if others := len(s.events) - flaps; others != 6000 {
			t.Errorf("of 6000 events about other objects there are %d", others)
		}
		if last := s.events[len(s.events)-1]; !strings.Contains(last.Message, "disk failed 5999") {
			t.Errorf("the last one says %q", last.Message)
		}
	})
}

// Whatever tasks come, go, fail, are canceled and flap, and however often the store is away: in the end the store knows of each task how
// it ended, as its caller does, of each event one, in order; and a task is not written more often than it has something to say.
func TestKeeperTellsTheTruthInTheEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type plan struct {
			after, lasts, cancel time.Duration
			fails                bool
		}
		pause := func(name string) time.Duration {
			return time.Duration(rapid.IntRange(0, 20_000).Draw(rt, name)) * time.Millisecond
		}
		var plans []plan
		for range rapid.IntRange(1, 30).Draw(rt, "tasks") {
			p := plan{after: pause("after"), lasts: pause("lasts"), fails: rapid.Bool().Draw(rt, "fails")}
			if rapid.Bool().Draw(rt, "canceled") {
				p.cancel = pause("cancel")
			}
			plans = append(plans, p)
		}
		var outages []time.Duration
		for range rapid.IntRange(0, 4).Draw(rt, "outages") {
			outages = append(outages, pause("up"), pause("away"))
		}
		synctest.Test(t, func(t *testing.T) {
			s := newShelf()
			k, end := serve(s, "host-1")
			var mu sync.Mutex
			told := map[inventory.TaskID]error{}
			lasted := map[inventory.TaskID]time.Duration{}
			var all sync.WaitGroup
			for _, p := range plans {
				all.Go(func() {
					time.Sleep(p.after)
					var id inventory.TaskID
					begun := time.Now()
					err := k.Run(t.Context(), "a", "o", "", func(ctx context.Context, tk *task.Task) error {
						id = tk.ID()
						if p.cancel > 0 {
							all.Go(func() { //nolint:contextcheck // somebody else's
								time.Sleep(p.cancel)
								_, _ = k.Cancel(t.Context(), id) // too late at times
							})
						}
						for until := time.Now().Add(p.lasts); time.Now().Before(until); {
							tk.Progress(1, 2, time.Now().String())
							select {
							case <-ctx.Done():
								return ctx.Err()
							case <-time.After(70 * time.Millisecond):
							}
						}
						if p.fails {
							return fault.New(fault.Conflict, "it fails")
						}
						return nil
					})
					mu.Lock()
					defer mu.Unlock()
					told[id], lasted[id] = err, time.Since(begun)
				})
			}
			for i, d := range outages {
				time.Sleep(d)
				s.setAway(i%2 == 0)
			}
			s.setAway(false)
			all.Wait()
			time.Sleep(10 * time.Second)
			end()
			if len(s.tasks) != len(plans) {
				t.Errorf("%d tasks left %d records", len(plans), len(s.tasks))
			}
			for id, got := range s.tasks {
				want := inventory.TaskSucceeded
				switch err := told[id]; {
				case fault.Is(err, fault.Canceled):
					want = inventory.TaskCanceled
				case err != nil:
					want = inventory.TaskFailed
				}
				if got.Status.State != want {
					t.Errorf("%s ended with %v and is %v", id, told[id], got.Status.State)
				}
				if most := 4 + int(lasted[id]/(5*time.Second)); s.writes[id] > most {
					t.Errorf("%s lasted %v and was written %d times", id, lasted[id], s.writes[id])
				}
			}
			ids := map[inventory.EventID]bool{}
			for i, e := range s.events {
				if ids[e.ID] || i > 0 && e.ID < s.events[i-1].ID {
					t.Errorf("event %s twice or out of order", e.ID)
				}
				ids[e.ID] = true
			}
		})
	})
}
