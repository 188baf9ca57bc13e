package store

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// RestoreMargin is what a restore adds to every host's epoch and every VM's generation, so that no number that was given after the
// backup is given again. It is what a host or VM may have been started in between; beyond it the lock records on the datastores refuse a
// generation that was used.
const RestoreMargin = 1000

// revisionBump is what a restore adds to the store's revision: watches, leaders' terms and renewals go by it, and none may see it go back
// (etcd's own guide, "Restoring with revision bump"). It stands for a thousand writes a second over eleven days.
const revisionBump = 1_000_000_000

// RestoreConfig is what Restore makes a store of.
type RestoreConfig struct {
	Backup *Backup
	// Server is the one member that the store has afterwards. Its Dir must not be there.
	Server ServerConfig
	// TLS is the client side for the endpoint; nil with http.
	TLS *tls.Config
}

// Restored is what Restore did.
type Restored struct {
	Revision   int64
	Hosts, VMs int
	Migrations int // that were not over, and have failed now
	Tokens     int // of hosts and users, that were forgotten
}

// Restore makes a new store of one member out of a backup, and ends. Nothing may run on its folder or its peer URL. A failure leaves nothing.
//
// What is restored says less than is true: hosts and VMs have moved on since the backup. So every epoch and generation is raised by
// RestoreMargin, marked as restored (Epoch.Restored, VMRun.Restored), and hosts ask the lock records on the datastores before they let
// go on or start what somebody else may have. Migrations that were not over have failed. Authority, the election, tokens of hosts and of
// users, and request keys are not restored: a used or revoked token would be good again, an executed request executed twice.
func Restore(ctx context.Context, c RestoreConfig) (done Restored, err error) {
	if _, err := os.Lstat(c.Server.Dir); !errors.Is(err, os.ErrNotExist) {
		return done, fault.New(fault.Exists, "restore store: %s is there: move it away first", c.Server.Dir)
	}
	file := c.Server.Dir + ".snapshot"
	_, noBorn := os.Stat(born(c.Server.Dir))
	defer func() {
		if removed := os.Remove(file); err == nil && !errors.Is(removed, os.ErrNotExist) {
			err = removed
		}
		if err != nil {
			_ = os.RemoveAll(c.Server.Dir) // err is the one to tell
			if noBorn != nil {
				_ = os.Remove(born(c.Server.Dir)) // likewise
			}
			err = fault.Wrap("restore", "store", err)
		}
	}()
	if err := unpackSnapshot(c.Backup, file); err != nil {
		return done, err
	}
	if err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: c.Server.Name, OutputDataDir: c.Server.Dir, PeerURLs: []string{c.Server.PeerURL},
		InitialCluster: c.Server.Name + "=" + c.Server.PeerURL, InitialClusterToken: "godwit-" + c.Backup.Manifest.Made.UTC().Format("20060102150405.000000000"),
		RevisionBump: revisionBump, MarkCompacted: true,
	}); err != nil {
		if strings.Contains(err.Error(), "sha256") {
			return done, fault.New(fault.Invalid, "the snapshot in the backup is damaged: take another backup")
		}
		return done, fault.New(fault.Invalid, "the snapshot in the backup cannot be unpacked: %w", err)
	}
	return c.amend(ctx)
}

// unpackSnapshot writes the snapshot to a file that only we can read.
func unpackSnapshot(b *Backup, path string) error {
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.New(fault.NoResources, "%w", err)
	}
	_, err = io.Copy(to, b.Snapshot())
	if err := errors.Join(err, to.Close()); err != nil {
		return fault.New(fault.NoResources, "%w", err)
	}
	return nil
}

// amend runs the member at a port that nobody knows, and changes the records in it.
func (c RestoreConfig) amend(ctx context.Context) (done Restored, err error) {
	conf := c.Server
	u, err := url.Parse(conf.ClientURL)
	if err != nil {
		return done, fault.New(fault.Invalid, "client url: %w", err)
	}
	u.Host = net.JoinHostPort(u.Hostname(), "0")
	conf.ClientURL = u.String()
	// A store that has grown beyond the usual quota must still take the changes.
	conf.Quota = max(conf.Quota, quotaBytes, 2*inventory.Bytes(c.Backup.size))
	ready, ended := make(chan string, 1), make(chan error, 1)
	conf.Ready = func(endpoint string) { ready <- endpoint }
	serving, stop := context.WithCancel(ctx)
	go func() { ended <- Serve(serving, conf) }() // waited for below
	select {
	case endpoint := <-ready:
		done, err = amend(ctx, Config{Endpoints: []string{endpoint}, TLS: c.TLS})
		stop()
		return done, errors.Join(err, <-ended)
	case err := <-ended:
		stop()
		if err == nil {
			err = ctx.Err()
		}
		return done, err
	}
}

func amend(ctx context.Context, conf Config) (done Restored, err error) {
	s, err := Open(ctx, conf)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, root := range []string{rootToken, rootUserToken} {
		tokens, err := s.get(ctx, root, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return done, err
		}
		done.Tokens += int(tokens.Count)
	}
	for _, root := range []string{keyLeader, rootAlive, keyFull, rootToken, rootUserToken, rootRequest} {
		if _, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(root, clientv3.WithPrefix())}, nil); err != nil {
			return done, err
		}
	}
	if done.Hosts, err = each(ctx, s, rootHost, partEpoch, hostEpochs, func(e *Epoch) { e.Epoch, e.Restored = e.Epoch+RestoreMargin, true }); err != nil {
		return done, err
	}
	if done.VMs, err = each(ctx, s, rootVM, partRun, vmRuns, func(r *inventory.VMRun) {
		r.Restored = max(r.Generation, r.Heir.Generation)
		r.Generation, r.Heir = r.Restored+RestoreMargin, inventory.Heir{}
	}); err != nil {
		return done, err
	}
	now := time.Now()
	if _, err = each(ctx, s, rootMigration, partStatus, migrationStatuses, func(m *inventory.MigrationStatus) {
		if !m.Phase.Final() {
			done.Migrations++
			m.Phase, m.Ended, m.Reason = inventory.Failed, now, "the store was restored from a backup meanwhile"
		}
	}); err != nil {
		return done, err
	}
	done.Revision, err = s.Revision(ctx)
	return done, err
}

// each changes every record of one kind, and returns how many there are. Pointers of VMs to their migrations go on the way.
func each[T any](ctx context.Context, s *Store, root, part string, c codec[T], change func(*T)) (count int, err error) {
	resp, err := s.get(ctx, root, clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	var ops []clientv3.Op
	flush := func(least int) error {
		if len(ops) < least {
			return nil
		}
		_, err := s.txn(ctx, nil, ops, nil)
		ops = nil
		return err
	}
	for _, kv := range resp.Kvs {
		op, ok, err := amendOne(kv, root, part, c, change)
		if err != nil {
			return count, err
		}
		if !ok {
			continue
		}
		if op.IsPut() {
			count++
		}
		ops = append(ops, op)
		if err := flush(pruneBatch); err != nil {
			return count, err
		}
	}
	return count, flush(1)
}

func amendOne[T any](kv *mvccpb.KeyValue, root, part string, c codec[T], change func(*T)) (op clientv3.Op, ok bool, err error) {
	key := string(kv.GetKey())
	_, found := split(root, key)
	if root == rootVM && found == partMigration {
		return clientv3.OpDelete(key), true, nil
	}
	if found != part || strings.Count(strings.TrimPrefix(key, root), "/") != 1 {
		return op, false, nil
	}
	old, err := c.unpack(key, kv.GetValue())
	if err != nil {
		return op, false, err
	}
	value := old.value
	change(&value)
	text, err := c.repack(old, value)
	return clientv3.OpPut(key, text), true, err
}
