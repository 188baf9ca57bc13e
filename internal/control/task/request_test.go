package task_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func call(key string, hash byte, durable bool) task.Call {
	return task.Call{Key: key, Procedure: "/create", Hash: []byte{hash}, Durable: durable}
}

func TestARepeatGetsTheFirstAnswer(t *testing.T) {
	for _, durable := range []bool{false, true} {
		t.Run(fmt.Sprint("durable ", durable), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf()
				k, end := serve(s, "host-1")
				other, endOther := serve(s, "host-2")
				defer endOther()
				defer end()
				done := 0
				execute := func(k *task.Keeper, err error) func(context.Context) ([]byte, error) {
					return func(ctx context.Context) ([]byte, error) {
						return []byte("made"), k.Run(ctx, "vm.create", "", "", func(context.Context, *task.Task) error {
							time.Sleep(time.Second)
							done++
							return err
						})
					}
				}
				var all sync.WaitGroup
				for range 5 {
					all.Go(func() {
						if got, err := k.Once(t.Context(), call("k", 1, durable), execute(k, nil)); err != nil || string(got) != "made" {
							t.Errorf("an answer was %q, %v", got, err)
						}
					})
				}
				all.Wait()
				if done != 1 {
					t.Errorf("it was done %d times", done)
				}
				if _, err := k.Once(t.Context(), call("k", 2, durable), execute(k, nil)); !fault.Is(err, fault.Conflict) {
					t.Errorf("another message: %v", err)
				}
				if got, err := k.Once(t.Context(), call("k", 1, durable), execute(k, nil)); err != nil || string(got) != "made" || done != 1 {
					t.Errorf("after another message: %q, %v, done %d times", got, err, done)
				}
				if durable {
					if _, err := other.Once(t.Context(), call("k", 2, true), execute(other, nil)); !fault.Is(err, fault.Conflict) {
						t.Errorf("another message at another host: %v", err)
					}
					if got, err := other.Once(t.Context(), call("k", 1, true), execute(other, nil)); err != nil || string(got) != "made" || done != 1 {
						t.Errorf("another host: %q, %v, done %d times", got, err, done)
					}
				}
				done = 0
				refusal := fault.Refuse(fault.Incompatible, []string{"one", "two"})
				for _, by := range []*task.Keeper{k, k, other} {
					if by == other && !durable {
						continue
					}
					if _, err := by.Once(t.Context(), call("r", 1, durable), execute(by, refusal)); len(fault.Reasons(err)) != 2 || !fault.Is(err, fault.Incompatible) {
						t.Errorf("a refusal became %v", err)
					}
				}
				if done != 1 {
					t.Errorf("the refused one was done %d times", done)
				}
				done = 0
				for range 2 { // a later try may go better
					if _, err := k.Once(t.Context(), call("u", 1, durable), execute(k, errAway)); !fault.Is(err, fault.Unavailable) {
						t.Errorf("it became %v", err)
					}
				}
				if done != 2 {
					t.Errorf("what a repeat may help was done %d times", done)
				}
				if _, err := k.Once(t.Context(), call("no key", 1, durable), nil); !fault.Is(err, fault.Invalid) {
					t.Errorf("a malformed key: %v", err)
				}
			})
		})
	}
}

func TestAWaiterMayLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, end := serve(newShelf(), "host-1")
		defer end()
		release := make(chan struct{})
		first := make(chan error, 1)
		go func() {
			_, err := k.Once(t.Context(), call("k", 1, true), func(ctx context.Context) ([]byte, error) {
				return nil, k.Run(ctx, "a", "", "", func(context.Context, *task.Task) error { <-release; return nil })
			})
			first <- err
		}()
		synctest.Wait()
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if _, err := k.Once(ctx, call("k", 1, true), nil); !fault.Is(err, fault.Canceled) {
			t.Errorf("the one who left got %v", err)
		}
		close(release)
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

func TestWhoPassesACallOnRecordsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		face, endFace := serve(s, "host-1")
		owner, endOwner := serve(s, "host-2")
		defer endOwner()
		defer endFace()
		done := 0
		pass := func(ctx context.Context) ([]byte, error) {
			return owner.Once(ctx, call("k", 1, true), func(ctx context.Context) ([]byte, error) {
				return []byte("made"), owner.Run(ctx, "a", "", "", func(context.Context, *task.Task) error { done++; return nil })
			})
		}
		for range 2 {
			// The other host gets the call over the wire, without this one's context.
			//nolint:contextcheck // that is the point
			got, err := face.Once(t.Context(), call("k", 1, true), func(context.Context) ([]byte, error) { return pass(t.Context()) })
			if err != nil || string(got) != "made" {
				t.Errorf("passed on: %q, %v", got, err)
			}
		}
		if r := s.requests["k"]; done != 1 || r.Host != "host-2" || !r.Done {
			t.Errorf("done %d times, recorded %+v", done, r)
		}
	})
}

// However many hosts are asked, and however often the agent that works on it is killed: a request makes one object, under one id, and every
// answer names it. The files of an execution that died are known to the next, and nobody else's are.
func TestARequestMakesOneObject(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		hosts := rapid.IntRange(1, 3).Draw(rt, "hosts")
		type ask struct {
			host  int
			after time.Duration
		}
		var asks []ask
		for range rapid.IntRange(1, 6).Draw(rt, "asks") {
			asks = append(asks, ask{rapid.IntRange(0, hosts-1).Draw(rt, "host"), time.Duration(rapid.IntRange(0, 300).Draw(rt, "after")) * time.Millisecond})
		}
		kills := rapid.SliceOfN(rapid.IntRange(1, 200), 0, 3).Draw(rt, "kills") // milliseconds, each after the one before
		synctest.Test(t, func(t *testing.T) {
			s := newShelf()
			var mu sync.Mutex
			objects, files := map[string]bool{}, map[string]bool{"mine": true}
			keepers := make([]*task.Keeper, hosts)
			var ends []func()
			start := func(i int) {
				k, end := serve(s, inventory.HostID(fmt.Sprint("host-", i)))
				mu.Lock()
				keepers[i] = k
				ends = append(ends, end)
				mu.Unlock()
			}
			for i := range keepers {
				start(i)
			}
			// make works in steps, and each fails once its agent's epoch is over, as a transaction does.
			create := func(h hand, k *task.Keeper) func(context.Context) ([]byte, error) {
				return func(ctx context.Context) (answer []byte, err error) {
					err = k.Run(ctx, "vm.create", "", "", func(ctx context.Context, _ *task.Task) error {
						id := task.ID(ctx, "vm-")
						alive := func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.epochs[h.host] == h.epoch }
						step := func(f func()) error {
							time.Sleep(20 * time.Millisecond)
							if !alive() {
								return fault.New(fault.Unavailable, "killed")
							}
							mu.Lock()
							defer mu.Unlock()
							f()
							return nil
						}
						if task.TakenOver(ctx) {
							mu.Lock()
							found := objects[id]
							mu.Unlock()
							if found {
								answer = []byte(id)
								return nil
							}
							if task.Intended(ctx, "mine") {
								t.Error("somebody's file counts as its own")
							}
						}
						mu.Lock()
						left := files["disk"]
						mu.Unlock()
						if left {
							if !task.Intended(ctx, "disk") {
								return fault.New(fault.Exists, "there is a disk")
							}
							if err := step(func() { delete(files, "disk") }); err != nil {
								return err
							}
						}
						if err := task.Intend(ctx, "disk"); err != nil {
							return err
						}
						if err := step(func() { files["disk"] = true }); err != nil {
							return err
						}
						if err := step(func() { objects[id] = true }); err != nil {
							return err
						}
						answer = []byte(id)
						return nil
					})
					return answer, err
				}
			}
			var all sync.WaitGroup
			answers := map[string]bool{}
			for _, a := range asks {
				all.Go(func() {
					time.Sleep(a.after)
					for { // as who repeats a call until it is answered
						mu.Lock()
						k := keepers[a.host]
						mu.Unlock()
						s.mu.Lock()
						host := inventory.HostID(fmt.Sprint("host-", a.host))
						h := hand{s, host, s.epochs[host]}
						s.mu.Unlock()
						got, err := k.Once(t.Context(), call("k", 1, true), create(h, k))
						if err == nil {
							mu.Lock()
							answers[string(got)] = true
							mu.Unlock()
							return
						}
						if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Canceled) {
							t.Errorf("it was answered %v", err)
							return
						}
						time.Sleep(50 * time.Millisecond)
					}
				})
			}
			for i, after := range kills {
				time.Sleep(time.Duration(after) * time.Millisecond)
				start(i % hosts) // the former one's epoch is over from here on
			}
			all.Wait()
			for _, end := range ends {
				end()
			}
			if len(objects) != 1 || len(answers) != 1 {
				t.Errorf("made %v, answered %v", objects, answers)
			}
			for id := range answers {
				if !objects[id] {
					t.Errorf("answered %s, made %v", id, objects)
				}
			}
		})
	})
}
