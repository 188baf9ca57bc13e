package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Fencer is the loop that watches the hosts' renewals, fences those that are proven dead (policy/authority), and says of each host where
// it stands. It fences with proof only: after the wait, where the host has a watchdog; on an operator's word (ConfirmDead). It moves
// no VM: that is Recoverer's.
type Fencer struct {
	Settings authority.Settings
	Now      func() authority.Moment // this machine's CLOCK_BOOTTIME
	Log      *slog.Logger
}

// Name implements Loop.
func (f *Fencer) Name() string { return "fence" }

// Run implements Loop.
func (f *Fencer) Run(ctx context.Context, term *store.Term) error {
	w := watcher{Fencer: f, term: term, observer: authority.NewObserver(f.Settings), said: map[inventory.HostID]inventory.HostStanding{}}
	hosts, err := term.Store().Standings(ctx)
	if err != nil {
		return err
	}
	w.said = hosts
	tick := time.NewTicker(f.Settings.RenewEvery / 2)
	defer tick.Stop()
	for {
		if err := w.round(ctx); over(err) {
			return err
		} else if err != nil && ctx.Err() == nil {
			f.Log.LogAttrs(ctx, slog.LevelWarn, "hosts not looked at", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watcher is a Fencer in one term.
type watcher struct {
	*Fencer

	term     *store.Term
	observer authority.Observer
	said     map[inventory.HostID]inventory.HostStanding // what the store says of each host
}

// round looks once, fences who is to be fenced, and writes what has changed.
func (w *watcher) round(ctx context.Context) error {
	renewals, err := w.term.Store().Renewals(ctx)
	if err != nil {
		return err
	}
	now := w.Now()
	w.observer.Read(renewals, now)
	// What operators have said is asked for meanwhile: the time that takes is no silence of the hosts, and its failure keeps nobody from being fenced.
	unheard := w.hearWords(ctx, renewals)
	for _, f := range w.observer.Look(now) {
		if err := w.act(ctx, f); err != nil {
			if over(err) {
				return err
			}
			w.Log.LogAttrs(ctx, slog.LevelWarn, "host not dealt with", slog.String("host", string(f.Host)), slog.Any("err", err))
		}
	}
	return unheard
}

// hearWords gives the observer what operators have said of hosts.
func (w *watcher) hearWords(ctx context.Context, renewals []inventory.Renewal) error {
	plans, err := w.term.Store().Plans(ctx)
	if err != nil {
		return err
	}
	for _, p := range plans {
		for _, r := range renewals {
			if !p.State.Final() && authority.Confirms(p, r) {
				w.observer.ConfirmDead(r.Host, r.Revision, p.By+" has confirmed that it is dead")
			}
		}
	}
	return nil
}

// act fences a host that is to be fenced, and writes where it stands.
func (w *watcher) act(ctx context.Context, f authority.Finding) error {
	now := inventory.HostStanding{State: string(f.Standing), Why: f.Why}
	switch f.Standing {
	case authority.Silent:
		w.Log.LogAttrs(ctx, slog.LevelWarn, "fences", slog.String("host", string(f.Host)), slog.String("why", f.Why))
		err := w.term.Fence(ctx, f.Host, f.Revision, f.Why, event(hostFenced, string(f.Host), f.Why))
		if fault.Is(err, fault.Conflict) && !over(err) {
			return nil // it lives: the next look finds that
		}
		if err != nil {
			return err
		}
		now.State = string(authority.Fenced)
	case authority.Fenced:
		if w.said[f.Host].State == now.State {
			return nil
		}
		epoch, err := w.term.Store().Epoch(ctx, f.Host) // fenced by a leader that came no further
		if err != nil {
			return err
		}
		now.Why = epoch.Why
	case authority.Up:
		switch {
		case f.Still:
			now = inventory.HostStanding{State: string(authority.Silent), Why: fmt.Sprintf("no sign of life: after %v without one it counts as dead", f.Wait)}
			if w.said[f.Host].State == string(authority.Blocked) {
				return nil // a new leader waits as the one before has waited
			}
		case !f.Alive:
			return nil
		}
	case authority.Blocked:
	}
	return w.say(ctx, f.Host, now)
}

// say writes where a host stands when that has changed, and tells of it.
func (w *watcher) say(ctx context.Context, host inventory.HostID, now inventory.HostStanding) error {
	was := w.said[host]
	if was.State == "" {
		was.State = string(authority.Up)
	}
	if was.State == now.State && was.Why == now.Why {
		return nil
	}
	now.Since = time.Now()
	var events []inventory.Event
	if was.State == now.State {
		now.Since = was.Since
	} else {
		switch authority.Standing(now.State) {
		case authority.Up:
			events = append(events, event(hostBack, string(host), "it was "+was.State+", and gives signs of life again"))
		case authority.Silent:
			events = append(events, event(hostSilent, string(host), now.Why))
		case authority.Blocked:
			events = append(events, event(hostBlocked, string(host), now.Why))
		case authority.Fenced: // told with the fence itself
		}
	}
	err := w.term.PutStanding(ctx, host, func(s *inventory.HostStanding) error {
		if s.State != now.State || s.Why != now.Why { // the answer to the same words may have been lost
			*s = now
		}
		return nil
	}, events...)
	if err == nil {
		w.said[host] = now
	}
	if fault.Is(err, fault.NotFound) {
		return nil // removed meanwhile
	}
	return err
}
