package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The pace of the upkeep.
const (
	upkeepEvery = 10 * time.Second
	forgetEvery = time.Minute
	// HistoryKept is how far back the store's history reaches: a watch that was away for longer begins anew, which costs one read of the
	// inventory. Hosts renew every second, so that history is most of what a store of many hosts holds.
	HistoryKept = 5 * time.Minute
	// upkeepCallMax bounds one round without its defragmentation.
	upkeepCallMax = 30 * time.Second
)

// Upkeep keeps the store small and open for writes: it compacts, has old records forgotten, defragments one member at a time, and
// speaks up before the store is full.
//
//	50 %  alarm: an event, and a line of cluster info
//	80 %  nothing new is taken; renewals, fences and run records go on
//	100 % etcd takes no writes: the store is rescued (Store.Rescue)
//
// What it does may be done twice. It writes nothing that the next leader misses.
type Upkeep struct {
	Store *store.Store
	// Event notes what happened; it may be nil.
	Event func(context.Context, inventory.Event)
	Log   *slog.Logger
	// Every is the pace, 0: 10 s. History is how much of it is kept, 0: HistoryKept. Tests hurry.
	Every, History time.Duration

	marks  []mark // oldest first
	warned bool
	forgot time.Time
}

// mark says which revision was the newest at a time.
type mark struct {
	at       time.Time
	revision int64
}

// Name implements Loop.
func (u *Upkeep) Name() string { return "upkeep" }

// Run implements Loop.
func (u *Upkeep) Run(ctx context.Context, term *store.Term) error {
	every := u.Every
	if every == 0 {
		every = upkeepEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := u.round(ctx, term); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round does one thing of each kind that is due.
func (u *Upkeep) round(ctx context.Context, term *store.Term) error {
	within, done := context.WithTimeout(ctx, upkeepCallMax)
	defer done()
	h, err := u.Store.Health(within)
	if err != nil {
		return err
	}
	if h.NoSpace() {
		if h, err = u.rescue(ctx, h); err != nil {
			return err
		}
	}
	if err := u.speak(within, term, h); err != nil {
		return err
	}
	if err := u.compact(within, h); err != nil {
		return err
	}
	if now := time.Now(); now.Sub(u.forgot) >= forgetEvery || h.Full != "" {
		if err := term.Writer().Forget(within, now); err != nil {
			return err
		}
		u.forgot = now
	}
	return u.defragment(ctx, h)
}

// rescue opens a store that takes no writes. The alarm is told afterwards, when an event can be written again.
func (u *Upkeep) rescue(ctx context.Context, h store.Health) (store.Health, error) {
	u.Log.LogAttrs(ctx, slog.LevelError, "the store is full and takes no writes: it is rescued", slog.String("full", h.FullText()))
	if err := u.Store.Rescue(ctx); err != nil {
		return h, err
	}
	after, err := u.Store.Health(ctx)
	if err != nil {
		return h, err
	}
	u.event(ctx, "store.rescued", inventory.Error, fmt.Sprintf("the store was full and took no writes (%s); now it holds %s", h.FullText(), after.FullText()))
	return after, nil
}

// speak raises and ends the alarm and the refusal.
func (u *Upkeep) speak(ctx context.Context, term *store.Term, h store.Health) error {
	percent := h.Percent()
	switch {
	case percent >= store.FullWarn && !u.warned:
		u.warned = true
		u.event(ctx, "store.filling", inventory.Warning, "the store holds "+h.FullText())
	case percent < store.FullWarn:
		u.warned = false
	}
	switch {
	case percent >= store.FullRefuse && h.Full == "":
		if err := term.SetFull(ctx, h.FullText()); err != nil {
			return err
		}
		u.event(ctx, "store.full", inventory.Error, "nothing new is taken: the store holds "+h.FullText())
	case percent < store.FullAgain && h.Full != "":
		if err := term.SetFull(ctx, ""); err != nil {
			return err
		}
		u.event(ctx, "store.room", inventory.Info, "new things are taken again: the store holds "+h.FullText())
	}
	return nil
}

// compact forgets the history that is old enough, and all of it when the store is almost full.
func (u *Upkeep) compact(ctx context.Context, h store.Health) error {
	keep := u.History
	if keep == 0 {
		keep = HistoryKept
	}
	now := time.Now()
	u.marks = append(u.marks, mark{now, h.Revision})
	if h.Percent() >= store.FullRefuse {
		u.marks = nil
		return u.Store.Compact(ctx, h.Revision)
	}
	old := 0
	for old < len(u.marks) && now.Sub(u.marks[old].at) >= keep {
		old++
	}
	if old == 0 {
		return nil
	}
	revision := u.marks[old-1].revision
	u.marks = slices.Clone(u.marks[old:])
	return u.Store.Compact(ctx, revision)
}

// defragment makes one member smaller, those that follow first. While one does not answer none is stopped: the others are needed.
func (u *Upkeep) defragment(ctx context.Context, h store.Health) error {
	var next *store.MemberHealth
	for i, m := range h.Members {
		if m.Err != "" {
			return nil
		}
		if m.Pays() && (next == nil || next.Leader) {
			next = &h.Members[i]
		}
	}
	if next == nil {
		return nil
	}
	began := time.Now()
	done, err := u.Store.Defragment(ctx, h, *next)
	if err != nil || !done {
		return err
	}
	u.Log.LogAttrs(ctx, slog.LevelInfo, "store defragmented", slog.String("member", next.Name), slog.Int64("bytes_before", int64(next.Size)),
		slog.Duration("took", time.Since(began)))
	return nil
}

func (u *Upkeep) event(ctx context.Context, kind string, severity inventory.Severity, message string) {
	if u.Event != nil {
		u.Event(ctx, inventory.Event{Kind: kind, Severity: severity, Object: "store", ObjectName: "store", Message: message})
	}
}

// rescueWithoutLeader rescues a full store from where nobody leads: without room for the record of a term nobody can lead, and
// without a leader there is no upkeep.
func rescueWithoutLeader(ctx context.Context, s *store.Store, why error, log *slog.Logger) {
	if !fault.Is(why, fault.NoResources) {
		return
	}
	log.LogAttrs(ctx, slog.LevelError, "the store is full and nobody leads: it is rescued", slog.Any("err", why))
	if err := s.Rescue(ctx); err != nil && ctx.Err() == nil {
		log.LogAttrs(ctx, slog.LevelError, "the store stays full", slog.Any("err", err))
	}
}
