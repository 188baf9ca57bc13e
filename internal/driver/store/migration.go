package store

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// MigrationsKept is how many migrations that are over stay in the store, MigrationAgeMax how long; the oldest go when there are more.
const (
	MigrationsKept  = 1000
	MigrationAgeMax = 90 * 24 * time.Hour
)

// pruneBatch bounds the operations of one pruning transaction (etcd allows 128 in one).
const pruneBatch = 60

func noMigration(id inventory.MigrationID) error {
	return fault.New(fault.NotFound, "no migration %q: see godwit migration ls", string(id))
}

// Migrations returns all migrations as of one moment, in the order in which they were asked for.
func (s *Store) Migrations(ctx context.Context) ([]inventory.Migration, error) {
	resp, err := s.get(ctx, rootMigration, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "migrations", err)
	}
	migrations, err := gatherMigrations(resp.Kvs)
	if err != nil {
		return nil, fault.Wrap("list", "migrations", err)
	}
	slices.SortStableFunc(migrations, func(a, b inventory.Migration) int { return a.Spec.Requested.Compare(b.Spec.Requested) })
	return migrations, nil
}

// Migration returns one migration, or fault.NotFound.
func (s *Store) Migration(ctx context.Context, id inventory.MigrationID) (inventory.Migration, error) {
	if checkID("migration", id) != nil {
		return inventory.Migration{}, noMigration(id)
	}
	resp, err := s.get(ctx, keyMigration(id, ""), clientv3.WithPrefix())
	if err != nil {
		return inventory.Migration{}, fault.Wrap("read", "migration "+string(id), err)
	}
	migrations, err := gatherMigrations(resp.Kvs)
	if err != nil {
		return inventory.Migration{}, fault.Wrap("read", "migration "+string(id), err)
	}
	if len(migrations) == 0 {
		return inventory.Migration{}, noMigration(id)
	}
	return migrations[0], nil
}

func gatherMigrations(kvs []*mvccpb.KeyValue) ([]inventory.Migration, error) {
	var migrations []inventory.Migration
	var m inventory.Migration
	var whole bool
	flush := func() {
		if whole {
			migrations = append(migrations, m)
		}
	}
	for _, kv := range kvs {
		key := string(kv.GetKey())
		id, part := split(rootMigration, key)
		if m.ID != inventory.MigrationID(id) {
			flush()
			m, whole = inventory.Migration{ID: inventory.MigrationID(id)}, false
		}
		var err error
		switch part {
		case partSpec:
			whole = true
			m.Spec, err = read(migrationSpecs, key, kv)
		case partStatus:
			m.Status, err = read(migrationStatuses, key, kv)
		}
		if err != nil {
			return nil, err
		}
	}
	flush()
	return migrations, nil
}

// CreateMigration records a wish to migrate. A VM that has a migration which is not over is fault.Conflict; both are
// decided in the transaction, so that of two wishes at once one is refused. Creating the same migration (by id) again
// does nothing.
func (w *Writer) CreateMigration(ctx context.Context, m inventory.Migration) error {
	if err := checkID("migration", m.ID); err != nil {
		return err
	}
	if err := checkID("vm", m.Spec.VM); err != nil {
		return err
	}
	op, object := "migrate", "vm "+m.Spec.VMName
	spec, err := migrationSpecs.pack(m.Spec)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	status, err := migrationStatuses.pack(m.Status)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	pointer, err := vmMigrations.pack(m.ID)
	if err != nil {
		return fault.Wrap(op, object, err)
	}
	vmKey, activeKey := keyVM(m.Spec.VM, partSpec), keyVM(m.Spec.VM, partMigration)
	specKey := keyMigration(m.ID, partSpec)
	for range attemptsMax {
		done, err := w.add(ctx,
			[]clientv3.Cmp{exists(vmKey), absent(activeKey), absent(specKey)},
			clientv3.OpPut(specKey, spec), clientv3.OpPut(keyMigration(m.ID, partStatus), status), clientv3.OpPut(activeKey, pointer))
		if err != nil {
			return fault.Wrap(op, object, err)
		}
		if done {
			return nil
		}
		if _, err := w.s.Migration(ctx, m.ID); !fault.Is(err, fault.NotFound) {
			return fault.Wrap(op, object, err) // nil: it was recorded before
		}
		active, revision, err := load(ctx, w.s, activeKey, vmMigrations)
		if err != nil {
			return fault.Wrap(op, object, err)
		}
		if revision != 0 {
			return fault.New(fault.Conflict, "migrate vm %s: it is migrating already: see godwit migration show %s", m.Spec.VMName, active.value)
		}
		if _, revision, err := load(ctx, w.s, vmKey, vmSpecs); err != nil || revision == 0 {
			if err == nil {
				err = noVM(string(m.Spec.VM))
			}
			return fault.Wrap(op, object, err)
		}
	}
	return fault.New(fault.Conflict, "migrate vm %s: others migrate it all the time: try again", m.Spec.VMName)
}

// ActiveMigration returns the id of the VM's migration that is not over; empty when there is none.
func (s *Store) ActiveMigration(ctx context.Context, vm inventory.VMID) (inventory.MigrationID, error) {
	rec, _, err := load(ctx, s, keyVM(vm, partMigration), vmMigrations)
	return rec.value, err
}

// UpdateMigrationSpec changes what was asked for, as UpdateRun does; only Canceled may change.
func (w *Writer) UpdateMigrationSpec(ctx context.Context, id inventory.MigrationID, change func(*inventory.MigrationSpec) error) (inventory.MigrationSpec, error) {
	return apply(ctx, w, edit[inventory.MigrationSpec]{
		what:    "spec of migration " + string(id),
		key:     keyMigration(id, partSpec),
		codec:   migrationSpecs,
		missing: noMigration(id),
		change: func(s *inventory.MigrationSpec) error {
			was := *s
			if err := change(s); err != nil {
				return err
			}
			if was.Canceled = s.Canceled; was != *s {
				return fault.New(fault.Internal, "spec of migration %s: only canceled may change", id)
			}
			return nil
		},
	})
}

// PutMigrationStatus writes where the migration stands. With a final phase the VM is free for its next migration in the
// same transaction, and migrations that are over beyond MigrationsKept are forgotten. A migration that is over stays in
// its phase: another one is fault.Conflict. Which host may write is the caller's rule (policy/handover).
func (w *Writer) PutMigrationStatus(ctx context.Context, id inventory.MigrationID, status inventory.MigrationStatus) error {
	spec, revision, err := load(ctx, w.s, keyMigration(id, partSpec), migrationSpecs)
	if err != nil {
		return fault.Wrap("report", "migration "+string(id), err)
	}
	if revision == 0 {
		return noMigration(id)
	}
	activeKey := keyVM(spec.value.VM, partMigration)
	var release []clientv3.Op
	_, err = apply(ctx, w, edit[inventory.MigrationStatus]{
		what:  "status of migration " + string(id),
		key:   keyMigration(id, partStatus),
		codec: migrationStatuses,
		before: func(ctx context.Context) ([]clientv3.Cmp, error) {
			release = nil
			if !status.Phase.Final() {
				return []clientv3.Cmp{exists(keyMigration(id, partSpec))}, nil
			}
			active, revision, err := load(ctx, w.s, activeKey, vmMigrations)
			if err != nil {
				return nil, err
			}
			cmps := []clientv3.Cmp{exists(keyMigration(id, partSpec)), unchanged(activeKey, revision)}
			if revision != 0 && active.value == id {
				release = []clientv3.Op{clientv3.OpDelete(activeKey)}
			}
			return cmps, nil
		},
		change: func(s *inventory.MigrationStatus) (err error) {
			*s, err = s.Next(id, status)
			return err
		},
		with: func(inventory.MigrationStatus) ([]clientv3.Cmp, []clientv3.Op) { return nil, release },
	})
	if err != nil {
		return err
	}
	if status.Phase.Final() {
		// What could not be forgotten now is forgotten after the next migration; this one's status is written.
		if count, err := w.s.get(ctx, rootMigration, clientv3.WithPrefix(), clientv3.WithCountOnly()); err == nil && count.Count > 2*int64(w.s.migrationsKept) { // two keys each
			_ = w.forgetOldMigrations(ctx, time.Now())
		}
	}
	return nil
}

// forgetOldMigrations removes the migrations that ended first, beyond the number that is kept, and those that are too old.
func (w *Writer) forgetOldMigrations(ctx context.Context, now time.Time) error {
	all, err := w.s.Migrations(ctx)
	if err != nil {
		return err
	}
	over := slices.DeleteFunc(all, func(m inventory.Migration) bool { return !m.Status.Phase.Final() })
	slices.SortStableFunc(over, func(a, b inventory.Migration) int { return a.Status.Ended.Compare(b.Status.Ended) })
	old := max(0, len(over)-w.s.migrationsKept)
	for old < len(over) && !over[old].Status.Ended.IsZero() && now.Sub(over[old].Status.Ended) > MigrationAgeMax {
		old++
	}
	for batch := range slices.Chunk(over[:old], pruneBatch) {
		var ops []clientv3.Op
		for _, m := range batch {
			ops = append(ops, clientv3.OpDelete(keyMigration(m.ID, ""), clientv3.WithPrefix()))
		}
		if _, err := w.commit(ctx, nil, ops...); err != nil {
			return err
		}
	}
	return nil
}
