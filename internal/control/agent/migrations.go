package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Migrations returns all migrations, newest first, live where they are driven here.
func (a *Agent) Migrations(ctx context.Context) ([]inventory.Migration, error) {
	all, err := a.Store.Migrations(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i], _ = a.liveMigration(all[i])
	}
	slices.SortFunc(all, func(x, y inventory.Migration) int { return y.Spec.Requested.Compare(x.Spec.Requested) })
	return all, nil
}

// Migration returns one migration.
func (a *Agent) Migration(ctx context.Context, id inventory.MigrationID) (inventory.Migration, error) {
	m, err := a.Store.Migration(ctx, id)
	if err != nil {
		return m, err
	}
	m, _ = a.liveMigration(m)
	return m, nil
}

// liveMigration adds what only the source's memory knows, and returns the Source that knows it.
func (a *Agent) liveMigration(m inventory.Migration) (inventory.Migration, *migrate.Source) {
	v := a.lookup(m.Spec.VM)
	if v == nil {
		return m, nil
	}
	v.mu.Lock()
	s := v.source
	v.mu.Unlock()
	if s == nil || s.Migration.ID != m.ID {
		return m, nil
	}
	m.Status, _ = s.Status()
	return m, s
}

// watchEvery is how often a watcher of a migration that is driven elsewhere, or not yet, looks at the store.
const watchEvery = 200 * time.Millisecond

// WatchMigration calls send with the migration whenever it changed, until its phase is final, ctx ends or send fails.
func (a *Agent) WatchMigration(ctx context.Context, id inventory.MigrationID, send func(inventory.Migration) error) error {
	for {
		m, err := a.Store.Migration(ctx, id)
		if err != nil {
			return err
		}
		m, s := a.liveMigration(m)
		if s == nil {
			if err := send(m); err != nil || m.Status.Phase.Final() {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(watchEvery):
			}
			continue
		}
		for {
			status, changed := s.Status()
			m.Status = status
			if err := send(m); err != nil || status.Phase.Final() {
				return err
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// CancelMigration marks the migration's record as canceled, and when it is driven here waits for what comes of it.
func (a *Agent) CancelMigration(ctx context.Context, id inventory.MigrationID) (inventory.Migration, error) {
	m, err := a.Migration(ctx, id)
	if err != nil {
		return m, err
	}
	refuse := func(format string, args ...any) (inventory.Migration, error) {
		return m, fault.Wrap("cancel", "migration "+string(id), fault.New(fault.Conflict, format, args...))
	}
	if m.Status.Phase.Final() {
		return refuse("it is %v already", m.Status.Phase)
	}
	_, err = a.writer.UpdateMigrationSpec(ctx, id, func(s *inventory.MigrationSpec) error {
		s.Canceled = true
		return nil
	})
	if err != nil {
		return m, err
	}
	if _, s := a.liveMigration(m); s != nil {
		if err := s.Cancel(ctx, caller(ctx)); err != nil {
			return refuse("%w", err)
		}
		return a.Migration(ctx, id)
	}
	err = a.WatchMigration(ctx, id, func(now inventory.Migration) error {
		m = now
		if now.Status.Released && !now.Status.Phase.Final() {
			return fault.New(fault.Conflict, "it was released to %s already", now.Spec.Target)
		}
		return nil
	})
	if err == nil && m.Status.Phase == inventory.Completed {
		return refuse("it is over: the VM runs on %s", m.Spec.Target)
	}
	return m, err
}

// plannedMax is how long a recorded migration may wait for its beginning: the two are one request of this agent.
const plannedMax = 10 * time.Second

// followMigrations acts on what the records say: cancels what is marked, and ends those that nobody drives.
func (a *Agent) followMigrations(ctx context.Context) error {
	var all []inventory.Migration
	return a.follow(ctx, store.Migrations, func(ctx context.Context, told news) (err error) {
		if !told.none() {
			if all, err = a.Store.Migrations(ctx); err != nil {
				return err
			}
		}
		for _, m := range all {
			if m.Status.Phase.Final() || m.Spec.Source != a.Host() {
				continue
			}
			_, s := a.liveMigration(m)
			if s == nil && m.Status.Phase == inventory.Planned && time.Since(m.Spec.Requested) > plannedMax {
				a.abandon(ctx, m, "the agent ended before it began")
			}
			if s != nil && m.Spec.Canceled {
				a.spawn(ctx, func(ctx context.Context) {
					within, done := context.WithTimeout(ctx, storeTimeout)
					defer done()
					if err := s.Cancel(within, "administrator"); err != nil {
						a.Log.LogAttrs(ctx, slog.LevelInfo, "not canceled", slog.Any("err", err))
					}
				})
			}
		}
		return nil
	})
}
