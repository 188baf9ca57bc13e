package rpc

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/godwit-vm/godwit/internal/fault"
)

// waitMax is how long a call waits for its turn when its caller makes too many. An honest script becomes slower so; one that
// does not slow down is refused.
const waitMax = time.Second

// callersMax is how many callers are told apart. Further ones share one count until others have been quiet for forgetAfter.
const (
	callersMax  = 4096
	forgetAfter = 2 * time.Minute
)

// bounds is what one caller may.
type bounds struct {
	calls, streams int
	perSecond      float64
	burst          int
	waitMax        time.Duration // 0: a call that cannot be made at once is refused
}

// tally counts callers' calls. Its methods may be called by many goroutines.
type tally struct {
	bounds bounds

	mu      sync.Mutex
	callers map[string]*caller
}

// caller is what is known of one.
type caller struct {
	calls, streams int
	rate           *rate.Limiter
	last           time.Time
}

func newTally(b bounds) *tally { return &tally{bounds: b, callers: map[string]*caller{}} }

// enter counts one more call of the caller, which has the bounds of share callers, and waits for its turn. The call is over when
// leave is called. An error says which bound was met: fault.NoResources for what is under way, fault.Unavailable for the rate,
// fault.Canceled when ctx ended.
func (t *tally) enter(ctx context.Context, name string, share int, stream bool) (leave func(), err error) {
	t.mu.Lock()
	c := t.find(name, share)
	switch {
	case c.calls >= t.bounds.calls*share:
		err = fault.New(fault.NoResources, "%s has %d calls under way, the most that one caller may have (limits.calls): try again when some are done", name, c.calls)
	case stream && c.streams >= t.bounds.streams*share:
		err = fault.New(fault.NoResources, "%s has %d consoles and other lasting calls under way, the most that one caller may have (limits.streams): end one", name, c.streams)
	}
	if err != nil {
		t.mu.Unlock()
		return nil, err
	}
	turn := c.rate.Reserve()
	wait := turn.Delay()
	if !turn.OK() || wait > t.bounds.waitMax {
		turn.Cancel()
		t.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "%s makes more than %g calls per second (limits.calls-per-second): slow down and try again", name, t.bounds.perSecond*float64(share))
	}
	lasts := 0
	if stream {
		lasts = 1
	}
	c.calls, c.streams = c.calls+1, c.streams+lasts
	t.mu.Unlock()
	leave = func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		c.calls, c.streams = c.calls-1, c.streams-lasts
		c.last = time.Now()
	}
	if wait <= 0 {
		return leave, nil
	}
	select {
	case <-time.After(wait):
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// find returns the caller's count, a new one for a new caller. The lock is held.
func (t *tally) find(name string, share int) *caller {
	if t.callers[name] == nil && len(t.callers) >= callersMax {
		for n, c := range t.callers {
			if c.calls == 0 && time.Since(c.last) > forgetAfter {
				delete(t.callers, n)
			}
		}
		if len(t.callers) >= callersMax {
			name = "others"
		}
	}
	c := t.callers[name]
	if c == nil {
		c = &caller{rate: rate.NewLimiter(rate.Limit(t.bounds.perSecond*float64(share)), t.bounds.burst*share)}
		t.callers[name] = c
	}
	c.last = time.Now()
	return c
}
