// Package carry is a host's part in the store: it follows who the members are, so that the host always finds one, carries a member of its own
// when the leader plans one here, lets go of it when it is none any more, and keeps the list of revoked certificates.
//
// It decides nothing: what is planned is in the store, by the leader (control/cluster). What it does is level-triggered, and may be ended and
// begun again at any point.
package carry

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

// State is what a host remembers of its part in the store, so that it finds the store again, and its own member, after a restart.
type State struct {
	Endpoints []string // URLs of the members
	Member    bool     // this host carries one
	ID        uint64   // of it; 0: it founded the store and has not seen itself there yet
	Folder    string   // of it, in the data folder
	Join      string   // what it joined with; empty for the one that founded the store
}

// Config is what Follow needs.
type Config struct {
	Foreign bool // the store is not Godwit's own: its members are nobody's business here
	Host    inventory.HostID
	Stores  []*store.Store                                    // the connections of this process, all of which are kept where the members are; the first is asked
	State   State                                             // as it was remembered
	Save    func(State) error                                 // remembers it, whole or not at all
	Want    func(on bool)                                     // says that the process of the member is to run, or not; it is said again and again
	Claim   func(context.Context) (release func(), err error) // returns when no such process runs, and keeps it so until release
	Remove  func(folder string) error                         // removes a member's files
	Revoked func(list []byte) error                           // keeps the list of revoked certificates
	Log     *slog.Logger
}

// lookEvery is how often Follow looks without having been told; stepMax bounds one look.
const (
	lookEvery = 2 * time.Second
	stepMax   = 20 * time.Second
)

// Follow does it until ctx ends.
func Follow(ctx context.Context, c Config) error {
	changes := c.Stores[0].Watch(ctx, store.Members)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last := ""
	for {
		within, done := context.WithTimeout(ctx, stepMax)
		err := c.look(within)
		done()
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != last && ctx.Err() == nil {
			c.Log.LogAttrs(ctx, slog.LevelWarn, "part in the store", slog.String("err", now))
			last = now
		}
		select {
		case _, more := <-changes:
			if !more {
				return nil
			}
		case <-tick.C:
		case <-ctx.Done():
			for range changes { // until the watch has ended
				continue
			}
			return nil
		}
	}
}

// look compares what is with what is planned, and takes the steps between.
func (c *Config) look(ctx context.Context) error {
	if c.Foreign {
		return c.keepRevoked(ctx)
	}
	// The plan is read first: what is read of the members after that is newer, and a member that is gone never comes back under its id.
	plan, err := c.Stores[0].MemberPlan(ctx, c.Host)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	members, err := c.Stores[0].Members(ctx)
	if err != nil {
		return err
	}
	next := c.State
	if urls := store.Voters(members); len(urls) > 0 {
		for _, s := range c.Stores {
			s.SetEndpoints(urls)
		}
		next.Endpoints = urls
	}
	// A member that runs under this host's name is this host's, whatever was remembered: its files are in use.
	if i := slices.IndexFunc(members, func(m store.Member) bool { return m.Host == c.Host }); i >= 0 && next.Member {
		next.ID = members[i].ID
	}
	if err := c.remember(next); err != nil {
		return err
	}
	if err := c.carry(ctx, plan, members); err != nil {
		return err
	}
	return c.keepRevoked(ctx)
}

// keepRevoked keeps the list of revoked certificates as the store has it.
func (c *Config) keepRevoked(ctx context.Context) error {
	list, _, err := c.Stores[0].Revoked(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	return c.Revoked(list)
}

// carry lets go of a member that is none any more, and takes up the one that is planned.
func (c *Config) carry(ctx context.Context, plan inventory.MemberPlan, members []store.Member) error {
	known := func(id uint64) bool {
		return slices.ContainsFunc(members, func(m store.Member) bool { return m.ID == id })
	}
	if c.State.Member && c.State.ID != 0 && !known(c.State.ID) {
		if err := c.letGo(ctx); err != nil {
			return err
		}
	}
	if !c.State.Member && plan.ID != 0 && plan.State != inventory.MemberLeaving && known(plan.ID) {
		next := c.State
		next.Member, next.ID, next.Join, next.Folder = true, plan.ID, plan.Join, fmt.Sprintf("store-%x", plan.ID)
		if err := c.remember(next); err != nil {
			return err
		}
		c.Log.LogAttrs(ctx, slog.LevelInfo, "carries a member of the store", slog.String("folder", next.Folder), slog.String("why", plan.Why))
	}
	c.Want(c.State.Member)
	return nil
}

// letGo ends the process of the member and removes its files, which nobody will ever want: the others have all that it knew, or more.
func (c *Config) letGo(ctx context.Context) error {
	c.Log.LogAttrs(ctx, slog.LevelInfo, "carries its member of the store no longer", slog.String("folder", c.State.Folder))
	c.Want(false)
	release, err := c.Claim(ctx)
	if err != nil {
		return fault.Wrap("end", "store", err)
	}
	defer release()
	folder := c.State.Folder
	next := c.State
	next.Member, next.ID, next.Join, next.Folder = false, 0, "", ""
	if err := c.remember(next); err != nil {
		return err
	}
	return c.Remove(folder)
}

func (c *Config) remember(next State) error {
	same := slices.Equal(next.Endpoints, c.State.Endpoints) && next.Member == c.State.Member && next.ID == c.State.ID &&
		next.Folder == c.State.Folder && next.Join == c.State.Join
	if same {
		return nil
	}
	if err := c.Save(next); err != nil {
		return err
	}
	c.State = next
	return nil
}
