package rpc

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/godwit-vm/godwit/internal/fault"
)

// lookupsMax is how many tokens of one address are looked up at once. So many more than allowed may be wrong at the worst.
const lookupsMax = 4

// tries counts the wrong tokens that come from an address. Right ones are not counted. Its methods may be called by many goroutines.
type tries struct {
	perMinute int

	mu        sync.Mutex
	addresses map[string]*tried
}

type tried struct {
	wrong *rate.Limiter // what is left of it
	slots chan struct{}
	last  time.Time
}

func newTries(perMinute int) *tries {
	return &tries{perMinute: perMinute, addresses: map[string]*tried{}}
}

// begin waits until the address may have a token looked up, or says that too many of its were wrong: fault.Unavailable. The returned function
// says how it went.
func (t *tries) begin(ctx context.Context, address string) (end func(wrong bool), err error) {
	t.mu.Lock()
	a := t.find(address)
	t.mu.Unlock()
	select {
	case a.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(waitMax):
		return nil, fault.New(fault.Unavailable, "%s shows more tokens at once than can be looked up: slow down and try again", address)
	}
	if a.wrong.Tokens() < 1 {
		<-a.slots
		return nil, fault.New(fault.Unavailable, "more than %d wrong tokens per minute from %s (limits.joins-per-minute): try again later", t.perMinute, address)
	}
	return func(wrong bool) {
		if wrong {
			a.wrong.Allow()
		}
		<-a.slots
	}, nil
}

// find returns the address' count. The lock is held. More addresses than can be told apart share one count until others have been quiet.
func (t *tries) find(address string) *tried {
	if t.addresses[address] == nil && len(t.addresses) >= callersMax {
		for name, a := range t.addresses {
			if len(a.slots) == 0 && time.Since(a.last) > forgetAfter {
				delete(t.addresses, name)
			}
		}
		if len(t.addresses) >= callersMax {
			address = "others"
		}
	}
	a := t.addresses[address]
	if a == nil {
		a = &tried{wrong: rate.NewLimiter(rate.Limit(float64(t.perMinute)/60), t.perMinute), slots: make(chan struct{}, lookupsMax)}
		t.addresses[address] = a
	}
	a.last = time.Now()
	return a
}
