// Package cluster is what one host does for all: loops that run where the election says, each of which reads the store, compares it with
// what should be, and takes a step.
//
//	Run ─► wait for the election ─► one goroutine per loop, for as long as the term stands ─► wait again
//
// A loop keeps nothing that the next leader would miss: what takes several steps is a plan in the store first (docs/architecture.md,
// "State"). Every write of a loop goes through its term, so one whose leader was replaced changes nothing more. Loops do not call one
// another; they meet in the store.
package cluster

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Loop is one concern of the leader.
type Loop interface {
	// Name says which, for the log.
	Name() string
	// Run works until ctx ends, which it does with the term. An error ends this run of the loop; it begins again after a pause.
	Run(ctx context.Context, term *store.Term) error
}

// Config is what Run needs.
type Config struct {
	Host  inventory.HostID
	Epoch uint64 // of the host's agent
	Store *store.Store
	Loops func(*store.Term) []Loop // made anew for every term, so that nothing is left of an earlier one
	Log   *slog.Logger
}

// errResigns ends the term of a loop that wants another host to lead.
var errResigns = errors.New("another host is to lead the cluster")

// againAfter is the pause before a failed campaign or loop is begun again.
const againAfter = 500 * time.Millisecond

// Run leads whenever the election says so, until ctx ends or the host's epoch is over (store.ErrEpochOver): one that was fenced
// must not keep others from leading.
func Run(ctx context.Context, c Config) error {
	for ctx.Err() == nil {
		term, err := c.Store.Lead(ctx, c.Host, c.Epoch)
		if errors.Is(err, store.ErrEpochOver) {
			return err
		}
		if err != nil {
			if ctx.Err() == nil {
				c.Log.LogAttrs(ctx, slog.LevelDebug, "no election", slog.Any("err", err))
				rescueWithoutLeader(ctx, c.Store, err, c.Log)
			}
			rest(ctx, againAfter)
			continue
		}
		c.lead(ctx, term)
	}
	return nil
}

// lead runs the loops for one term.
func (c Config) lead(ctx context.Context, term *store.Term) {
	c.Log.LogAttrs(ctx, slog.LevelInfo, "leads the cluster", slog.Uint64("term", term.Number()))
	within, end := context.WithCancel(ctx)
	defer end()
	var all errgroup.Group
	for _, l := range c.Loops(term) {
		all.Go(func() error {
			for within.Err() == nil {
				err := l.Run(within, term)
				if over(err) || errors.Is(err, errResigns) {
					end()
					return nil
				}
				if err != nil && within.Err() == nil {
					c.Log.LogAttrs(within, slog.LevelWarn, "loop of the leader begins again", slog.String("loop", l.Name()), slog.Any("err", err))
				}
				rest(within, againAfter)
			}
			return nil
		})
	}
	select {
	case <-term.Over():
	case <-within.Done():
	}
	end()
	_ = all.Wait() // they return nil
	term.End()     //nolint:contextcheck // ctx may have ended, and the term is given up all the same
	c.Log.LogAttrs(ctx, slog.LevelInfo, "leads the cluster no longer", slog.Uint64("term", term.Number()))
}

// rest waits, unless ctx ends before.
func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}
