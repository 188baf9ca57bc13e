package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The times of the election. They are a matter of speed only: every transaction of a leader compares that its term stands, so one that was
// replaced and does not know it yet can change nothing. etcd's own leases would do, but a new etcd leader grants every lease its whole
// time again, so that a leader whose host had both is replaced too late.
const (
	leaderBeat    = 500 * time.Millisecond  // between two signs of life of a leader
	leaderSilence = 2500 * time.Millisecond // without one, by the candidate's own clock from its own sight: it may be replaced
	leaderLook    = time.Second             // between two looks of a candidate
	leaderAgain   = time.Second             // a candidate that could not look waits at least so long from its next look
)

// The parts of the election: who leads, written when a term begins, and the leader's signs of life.
const (
	keyTerm     = keyLeader + "/term"
	keyTermBeat = keyLeader + "/beat"
)

// ErrTermOver is on the path of every refusal of a leader that another one has followed. The kind is fault.Conflict.
var ErrTermOver = errors.New("another host leads the cluster now")

// Term is one host's time as the cluster's leader. Make one with Store.Lead.
type Term struct {
	w        *Writer
	revision int64 // of keyTerm
	leaves   bool

	over chan struct{} // closed when the term has ended, or may have
	end  func()
	done sync.WaitGroup // of beat
}

// Lead waits until the host of the epoch leads the cluster, and returns its term. It returns an error when ctx ends, the store does not
// answer, or the epoch is over (ErrEpochOver). A host that is to leave the cluster leads only when no other has begun to for twice the silence. The
// caller ends the term.
func (s *Store) Lead(ctx context.Context, host inventory.HostID, epoch uint64) (*Term, error) {
	candidate := s.As(host, epoch)
	var seen [2]int64 // revisions of keyTerm and keyTermBeat
	var since, looked time.Time
	for {
		resp, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpGet(keyTerm), clientv3.OpGet(keyTermBeat), clientv3.OpGet(keyRemoval(host))}, nil)
		if err != nil {
			return nil, err
		}
		leaves := len(resp.Responses[2].GetResponseRange().GetKvs()) > 0
		now := time.Now()
		holder, revisions := leaderOf(resp)
		switch {
		case revisions != seen:
			seen, since = revisions, now
		case now.Sub(looked) > leaderLook+leaderLook/2:
			// The store was away, for the leader too: it gets a moment to say so.
			if moment := now.Add(leaderAgain - leaderSilence); since.Before(moment) {
				since = moment
			}
		}
		looked = now
		// The former agent of this host is no more, or this one would not have its epoch.
		silence := leaderSilence
		if leaves {
			silence *= 2
		}
		if !leaves && (holder == "" || holder == host) || now.Sub(since) >= silence {
			term, err := candidate.take(ctx, revisions)
			if term != nil {
				term.leaves = leaves
			}
			if term != nil || err != nil {
				return term, err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Canceled, "election: %w", ctx.Err())
		case <-time.After(min(leaderLook, silence-now.Sub(since))):
		}
	}
}

// leaderOf reads the answer to a look at the election: who leads, "" for nobody, and the revisions of both keys.
func leaderOf(resp *clientv3.TxnResponse) (holder inventory.HostID, revisions [2]int64) {
	for i := range revisions {
		for _, kv := range resp.Responses[i].GetResponseRange().GetKvs() {
			revisions[i] = kv.GetModRevision()
			if i == 0 {
				name, _, _ := strings.Cut(string(kv.GetValue()), " ")
				holder = inventory.HostID(name)
			}
		}
	}
	return holder, revisions
}

// take begins a term if nobody has given a sign of life since the look; nil and no error: somebody has.
func (w *Writer) take(ctx context.Context, seen [2]int64) (*Term, error) {
	epochKey := keyHost(w.host, partEpoch)
	epochRevision, err := w.epochRevision(ctx)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s %d", w.host, w.epoch)
	resp, err := w.s.txn(ctx,
		[]clientv3.Cmp{unchanged(epochKey, epochRevision), unchanged(keyTerm, seen[0]), unchanged(keyTermBeat, seen[1])},
		[]clientv3.Op{clientv3.OpPut(keyTerm, name), clientv3.OpPut(keyTermBeat, name)}, []clientv3.Op{clientv3.OpGet(epochKey)})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, w.learnEpoch(resp.Responses[0].GetResponseRange().GetKvs())
	}
	t := &Term{revision: resp.Header.GetRevision(), over: make(chan struct{})}
	t.w = &Writer{s: w.s, host: w.host, epoch: w.epoch, term: t}
	beating, end := context.WithCancel(context.WithoutCancel(ctx))
	t.end = end
	t.done.Go(func() { t.beat(beating) })
	return t, nil
}

// beat gives signs of life until the term is over, or has been without an acknowledged one for so long that it may be.
func (t *Term) beat(ctx context.Context) {
	defer close(t.over)
	w := &Writer{s: t.w.s, host: t.w.host, epoch: t.w.epoch, term: t}
	tick := time.NewTicker(leaderBeat)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		sent := time.Now()
		within, done := context.WithDeadline(ctx, last.Add(leaderSilence))
		_, err := w.commit(within, nil, clientv3.OpPut(keyTermBeat, fmt.Sprintf("%s %d", w.host, w.epoch)))
		done()
		switch {
		case err == nil:
			last = sent
		case errors.Is(err, ErrTermOver), errors.Is(err, ErrEpochOver), time.Since(last) >= leaderSilence:
			return
		}
	}
}

// Writer returns a Writer whose every transaction compares that this term has not ended, beside the host's epoch.
func (t *Term) Writer() *Writer { return t.w }

// Store returns the store that the term is of, for reading.
func (t *Term) Store() *Store { return t.w.s }

// Number grows with every term of the cluster: calls of a leader carry it, and who was called by a later leader refuses them.
func (t *Term) Number() uint64 { return uint64(t.revision) } //nolint:gosec // revisions are positive

// Leaves reports whether the host was to leave the cluster already when its term began: no other host was there to lead.
func (t *Term) Leaves() bool { return t.leaves }

// Over is closed when the term has ended, or may have. What the leader does is safe without it; it says when to stop trying.
func (t *Term) Over() <-chan struct{} { return t.over }

// Intercept has f called before and after each transaction of the term; an error of f ends that call with it. It is for tests that end a
// leader between any two steps, and is called before the term is used.
func (t *Term) Intercept(f func(done bool) error) { t.w.intercept = f }

// End gives the term up, so that another host leads at once.
func (t *Term) End() {
	t.end()
	t.done.Wait()
	ctx, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	// What cannot be said now is said by silence.
	_, _ = t.w.s.txn(ctx, []clientv3.Cmp{t.stands()}, []clientv3.Op{clientv3.OpDelete(keyTerm), clientv3.OpDelete(keyTermBeat)}, nil)
}

// Leader returns the host that leads the cluster, or fault.NotFound while none does. One that has just died is named for some seconds.
func (s *Store) Leader(ctx context.Context) (inventory.HostID, error) {
	resp, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpGet(keyTerm), clientv3.OpGet(keyTermBeat)}, nil)
	if err != nil {
		return "", err
	}
	holder, _ := leaderOf(resp)
	if holder == "" {
		return "", fault.New(fault.NotFound, "no host leads the cluster right now: try again in a few seconds")
	}
	return holder, nil
}

func (t *Term) stands() clientv3.Cmp { return unchanged(keyTerm, t.revision) }

func (t *Term) in(kvs []*mvccpb.KeyValue) bool {
	return len(kvs) == 1 && kvs[0].GetModRevision() == t.revision
}

func (t *Term) refusal() error {
	return fault.New(fault.Conflict, "term %d of host %s: %w", t.revision, t.w.host, ErrTermOver)
}
