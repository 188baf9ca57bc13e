package memory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Pattern is the order in which a Dirtier visits pages.
type Pattern string

// The patterns.
const (
	Sequential Pattern = "sequential" // page after page, then from the start: the widest working set for a rate
	Random     Pattern = "random"     // any page next, some sooner again than others
)

// ParsePattern returns the pattern of that name; empty means Random.
func ParsePattern(name string) (Pattern, error) {
	switch p := Pattern(name); p {
	case "":
		return Random, nil
	case Sequential, Random:
		return p, nil
	default:
		return "", fmt.Errorf("pattern %q is unknown; use sequential or random", name)
	}
}

// tick is how often a Dirtier catches up with its rate.
const tick = 10 * time.Millisecond

// backlogMax bounds what a Dirtier makes up for after it could not run, so that a pause is not followed by a storm.
const backlogMax = 100 * time.Millisecond

// Dirtier rewrites pages of a region at a rate.
type Dirtier struct {
	Region  *Region
	Rate    int64 // bytes per second; the guest's processor may allow less
	Pattern Pattern
}

// Run writes until ctx ends. A rate of 0 writes nothing.
func (d Dirtier) Run(ctx context.Context) error {
	if d.Rate <= 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	pages := d.Region.Pages()
	choose := rand.New(rand.NewPCG(d.Region.seed, uint64(pages)))
	page := 0
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := time.Now()
	var due float64 // bytes that should have been written by now and are not
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticker.C:
			passed := min(now.Sub(last), backlogMax)
			last = now
			due += passed.Seconds() * float64(d.Rate)
		}
		// What could not be written within one tick is forgotten beyond the backlog: the rate was more than this processor can do.
		due = min(due, backlogMax.Seconds()*float64(d.Rate)+PageSize)
		for end := time.Now().Add(tick); due >= PageSize && ctx.Err() == nil; due -= PageSize {
			if d.Pattern == Sequential {
				page = (page + 1) % pages
			} else {
				page = choose.IntN(pages)
			}
			d.Region.Write(page)
			if time.Now().After(end) {
				break
			}
		}
	}
}
