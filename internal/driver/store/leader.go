package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// leaderTTL is after how many seconds without a sign of life a leader is replaced. It is a matter of speed only: every
// transaction of a leader compares that its election key is there, so one that was replaced and does not know it yet can change nothing.
const leaderTTL = 3

// ErrTermOver is on the path of every refusal of a leader that another one has followed. The kind is fault.Conflict.
var ErrTermOver = errors.New("another host leads the cluster now")

// Term is one host's time as the cluster's leader. Make one with Store.Lead.
type Term struct {
	w        *Writer
	session  *concurrency.Session
	election *concurrency.Election
	key      string
	revision int64
}

// Lead waits until the host of the epoch leads the cluster, and returns its term; nil and an error when ctx ends, or the store went away
// meanwhile. The caller ends the term.
func (s *Store) Lead(ctx context.Context, host inventory.HostID, epoch uint64) (*Term, error) {
	session, err := concurrency.NewSession(s.client, concurrency.WithTTL(leaderTTL), concurrency.WithContext(ctx))
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	election := concurrency.NewElection(session, keyLeader)
	if err := election.Campaign(ctx, string(host)); err != nil {
		_ = session.Close() // it would end by itself
		return nil, s.explain(ctx, err)
	}
	t := &Term{session: session, election: election, key: election.Key(), revision: election.Rev()}
	t.w = &Writer{s: s, host: host, epoch: epoch, term: t}
	return t, nil
}

// Writer returns a Writer whose every transaction compares that this term has not ended, beside the host's epoch.
func (t *Term) Writer() *Writer { return t.w }

// Number grows with every term of the cluster: calls of a leader carry it, and who was called by a later leader refuses them.
func (t *Term) Number() uint64 { return uint64(t.revision) } //nolint:gosec // revisions are positive

// Over is closed when the term has ended, or may have. What the leader does is safe without it; it says when to stop trying.
func (t *Term) Over() <-chan struct{} { return t.session.Done() }

// End gives the term up, so that another host leads at once.
func (t *Term) End() {
	ctx, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	_ = t.election.Resign(ctx) // it ends by itself after leaderTTL
	_ = t.session.Close()
}

// Leader returns the host that leads the cluster, or fault.NotFound while none does.
func (s *Store) Leader(ctx context.Context) (inventory.HostID, error) {
	resp, err := s.get(ctx, keyLeader+"/", clientv3.WithFirstCreate()...)
	if err != nil {
		return "", err
	}
	if len(resp.Kvs) == 0 {
		return "", fault.New(fault.NotFound, "no host leads the cluster right now: try again in a few seconds")
	}
	return inventory.HostID(resp.Kvs[0].Value), nil
}

func (t *Term) stands() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(t.key), "=", t.revision)
}

func (t *Term) in(kvs []*mvccpb.KeyValue) bool {
	return len(kvs) == 1 && kvs[0].GetCreateRevision() == t.revision
}

func (t *Term) over() error {
	return fault.New(fault.Conflict, "term %d of host %s: %w", t.revision, t.w.host, ErrTermOver)
}
