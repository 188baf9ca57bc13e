package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// nobody is a warden that takes everything.
type nobody struct{}

func (nobody) Authority(context.Context, uint64, authority.Moment) error { return nil }

func (nobody) Shorten(context.Context, authority.Moment) error { return nil }

func (nobody) GiveUp(context.Context) error { return nil }

func (nobody) VM(context.Context, inventory.VMID, authority.Arbiter, bool) error { return nil }

func (nobody) Gone(context.Context, inventory.VMID) error { return nil }

func (nobody) Cleared(context.Context) error { return nil }

func (nobody) Stands(context.Context, inventory.VMID) error { return nil }

func (nobody) Unwatched(context.Context) error { return nil }

func (nobody) Left() (fences uint64, until authority.Moment) { return 0, 0 }

func (nobody) Fencing() inventory.Fencing { return inventory.FencedByNobody }

// renewals is a store and a warden that note what they are told, in one order, with the time since the beginning.
type renewals struct {
	nobody

	mu     sync.Mutex
	began  time.Time
	heard  []string
	answer func(ctx context.Context) error // of the store
	deaf   bool                            // the warden does not answer
	bare   bool                            // it has no watchdog, until it hears of an authority
}

func (r *renewals) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = append(r.heard, fmt.Sprintf("%v ", r.now().Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (r *renewals) now() authority.Moment { return time.Hour + time.Since(r.began) }

func (r *renewals) since() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	heard := r.heard
	r.heard = nil
	return heard
}

func (r *renewals) renew(ctx context.Context, lease time.Duration, fencing inventory.Fencing) error {
	r.mu.Lock()
	answer := r.answer
	r.mu.Unlock()
	err := answer(ctx)
	r.note("renewal of %v, fenced by %q: %v", lease, fencing, err)
	return err
}

func (r *renewals) store(answer func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *renewals) word(ctx context.Context, format string, args ...any) error {
	r.mu.Lock()
	deaf := r.deaf
	r.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	r.note("warden: "+format, args...)
	return nil
}

func (r *renewals) Authority(ctx context.Context, fences uint64, until authority.Moment) error {
	r.mu.Lock()
	r.bare = false
	r.mu.Unlock()
	return r.word(ctx, "until %v, fenced %d times", until, fences)
}

func (r *renewals) Shorten(ctx context.Context, until authority.Moment) error {
	return r.word(ctx, "no longer than %v", until)
}
func (r *renewals) GiveUp(ctx context.Context) error { return r.word(ctx, "over") }

func (r *renewals) Fencing() inventory.Fencing {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bare {
		return inventory.FencedByNobody
	}
	return inventory.FencedByWatchdog
}

func takes(context.Context) error { return nil }

// hangs answers nothing, as a store whose process is stopped.
func hangs(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// begin runs a renewer until the test ends.
func (r *renewals) begin(t *testing.T, until authority.Moment) *renewer {
	r.began = time.Now()
	m := authority.NewAgent(authority.Default(), 2, until, r.now())
	k := newRenewer(AuthorityConfig{Warden: r, Settings: authority.Default(), Log: slog.New(slog.DiscardHandler)}, r.renew, r.now, m)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); k.run(ctx) }()
	t.Cleanup(func() { end(); <-ended })
	return k
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("heard:\n%q\nnot:\n%q", got, want)
	}
}

func TestRenewerStopsAndRunsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &renewals{answer: takes}
		k := r.begin(t, 0)
		synctest.Wait()
		expect(t, r.since(), "1h0m0s warden: no longer than 1h0m8s", `1h0m0s renewal of 8s, fenced by "watchdog": <nil>`, "1h0m0s warden: until 1h0m8s, fenced 2 times")
		if left := k.left(); left != 4*time.Second {
			t.Errorf("left %v", left)
		}
		r.store(hangs)
		time.Sleep(4*time.Second - time.Nanosecond)
		synctest.Wait()
		if stopped, _, _ := k.standstill(); stopped {
			t.Error("stopped too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		stopped, changed, over := k.standstill()
		if !stopped || over != nil || k.left() > 0 || k.trouble() == nil {
			t.Errorf("stopped %v, over %v, left %v, trouble %v", stopped, over, k.left(), k.trouble())
		}
		var kinds []string
		for _, line := range r.since() {
			kinds = append(kinds, line[:9])
		}
		expect(t, kinds, "1h0m1.9s ", "1h0m2.9s ", "1h0m3.9s ") // each gave up in time for the next
		r.store(takes)
		<-changed // the renewal that was sent at 4 s is still without an answer
		if stopped, _, _ := k.standstill(); !stopped {
			t.Error("it runs on without an answer")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if stopped, _, _ := k.standstill(); stopped || k.left() < 3*time.Second {
			t.Errorf("stopped %v, left %v after the store is back", stopped, k.left())
		}
	})
}

// A lease that is shorter than the one before is not sent before the warden has taken that; and where it does not answer, not at all.
func TestRenewerShortensFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &renewals{answer: takes, deaf: true}
		k := r.begin(t, time.Hour+time.Minute) // of a planned restart
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		expect(t, r.since())
		if left := k.left(); left != 3100*time.Millisecond {
			t.Errorf("left %v: what may be shortened counts as shortened", left)
		}
		r.mu.Lock()
		r.deaf = false
		r.mu.Unlock()
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		heard := r.since()
		expect(t, heard, "1h0m1s warden: no longer than 1h0m9s", `1h0m1s renewal of 8s, fenced by "watchdog": <nil>`, "1h0m1s warden: until 1h0m9s, fenced 2 times")
	})
}

// A host that has a watchdog now says so at once.
func TestRenewerTellsNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &renewals{answer: takes, bare: true}
		r.begin(t, 0)
		synctest.Wait()
		expect(t, r.since(), "1h0m0s warden: no longer than 1h0m8s", `1h0m0s renewal of 8s, fenced by "": <nil>`, "1h0m0s warden: until 1h0m8s, fenced 2 times",
			`1h0m0s renewal of 8s, fenced by "watchdog": <nil>`, "1h0m0s warden: until 1h0m8s, fenced 2 times")
	})
}

func TestRenewerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &renewals{answer: takes}
		k := r.begin(t, 0)
		synctest.Wait()
		r.since()
		r.store(func(context.Context) error { return fault.New(fault.Conflict, "epoch 7: %w", store.ErrEpochOver) })
		time.Sleep(time.Second)
		synctest.Wait()
		expect(t, r.since(), `1h0m1s renewal of 8s, fenced by "watchdog": epoch 7: its epoch is over`, "1h0m1s warden: over")
		if _, _, over := k.standstill(); !errors.Is(over, store.ErrEpochOver) || k.left() != 0 {
			t.Errorf("over %v, left %v", over, k.left())
		}
		if err := k.await(t.Context(), 1); !errors.Is(err, store.ErrEpochOver) {
			t.Errorf("await: %v", err)
		}
	})
}

func TestRenewerPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &renewals{answer: takes}
		k := r.begin(t, 0)
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		r.since()
		if err := k.plan(t.Context(), func() bool { return true }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		expect(t, r.since(), `1h0m0.3s renewal of 1m0s, fenced by "": <nil>`, "1h0m0.3s warden: until 1h1m0.3s, fenced 2 times")

		away := &renewals{answer: hangs}
		k = away.begin(t, 0)
		ctx, done := context.WithTimeout(t.Context(), time.Second)
		defer done()
		if err := k.plan(ctx, func() bool { return true }); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a plan without a store: %v", err)
		}
	})
}
