package store

import (
	"context"
	"errors"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// attemptsMax bounds how often a change is tried again because somebody else changed the record first.
const attemptsMax = 16

// ErrEpochOver is on the path of every refusal of a Writer whose host was started again, or declared dead, in the
// meantime. Whoever gets it acts for nobody any more: it must stop, not retry. The kind is fault.Conflict.
var ErrEpochOver = errors.New("its epoch is over")

// ErrRestored is on the path beside ErrEpochOver when the store was restored from a backup: nobody has declared the host dead.
var ErrRestored = errors.New("the store was restored from a backup: start godwit on this host again")

// Epoch is what a host's epoch key holds.
type Epoch struct {
	Epoch  uint64 // counts the starts of its agent, and fences
	BootID string // of the kernel under the agent's last start
	Fences uint64 // counts the times that the host was fenced
	Fenced bool   // it was fenced since its agent's last start
	Why    string // of the last fence
	// Restored says that the record comes from a backup, and the host's agent has not started since: others may have been given its VMs in
	// between, which only the lock records on the datastores know.
	Restored bool
}

// Writer changes the inventory on behalf of one start of one host's agent. Make one with Store.As.
type Writer struct {
	s     *Store
	host  inventory.HostID
	epoch uint64
	term  *Term // of a leader: its writes compare that it still leads

	intercept func(done bool) error // called around each transaction; nil but in tests

	mu       sync.Mutex
	renewed  uint64 // renewals that were sent
	alive    int64  // revision of the last renewal, as far as it is known
	revision int64  // of the epoch's key when it last held our epoch; 0: not read yet
}

// As returns a Writer for the host's agent that was given this epoch by NextEpoch. It does not ask the store; the first
// change does.
func (s *Store) As(host inventory.HostID, epoch uint64) *Writer {
	return &Writer{s: s, host: host, epoch: epoch}
}

// Host returns whom the Writer acts for.
func (w *Writer) Host() inventory.HostID { return w.host }

// Epoch returns the start of the agent that the Writer acts for.
func (w *Writer) Epoch() uint64 { return w.epoch }

// NextEpoch counts a start of the host's agent and returns the new epoch, from 1, and the record as it was before: whether the host was
// fenced since its last agent began, and under which boot that was. Every Writer with an older epoch is refused from then on.
// bootID is the kernel's boot id, by which others can tell a new boot from a new agent. A host that the cluster does not know is
// fault.NotFound: it was removed, and must not come back by a start.
func (s *Store) NextEpoch(ctx context.Context, host inventory.HostID, bootID string) (now, before Epoch, err error) {
	if err := checkID("host", host); err != nil {
		return now, before, err
	}
	key := keyHost(host, partEpoch)
	for range attemptsMax {
		old, revision, err := load(ctx, s, key, hostEpochs)
		if err != nil {
			return now, before, fault.Wrap("start epoch of", "host "+string(host), err)
		}
		if revision == 0 {
			return now, before, fault.New(fault.NotFound, "start epoch of host %s: the cluster has no host of that name, it was removed: "+
				"empty its data folder and join it again", host)
		}
		before = old.value
		now = Epoch{Epoch: before.Epoch + 1, BootID: bootID, Fences: before.Fences}
		value, err := hostEpochs.repack(old, now)
		if err != nil {
			return now, before, err
		}
		done, err := s.txn(ctx, []clientv3.Cmp{unchanged(key, revision)}, []clientv3.Op{clientv3.OpPut(key, value)}, nil)
		if err != nil {
			return now, before, fault.Wrap("start epoch of", "host "+string(host), err)
		}
		if done.Succeeded {
			return now, before, nil
		}
	}
	return now, before, fault.New(fault.Conflict, "start epoch of host %s: it changed %d times meanwhile: is the agent running twice?", host, attemptsMax)
}

// Epoch returns the host's epoch record as it is now, or fault.NotFound when the host never started an agent.
func (s *Store) Epoch(ctx context.Context, host inventory.HostID) (Epoch, error) {
	rec, revision, err := load(ctx, s, keyHost(host, partEpoch), hostEpochs)
	if err != nil {
		return Epoch{}, err
	}
	if revision == 0 {
		return Epoch{}, noHost(host)
	}
	return rec.value, nil
}

// Sign returns what the store says now of the host's life.
func (s *Store) Sign(ctx context.Context, host inventory.HostID) (inventory.Sign, error) {
	rec, revision, err := load(ctx, s, keyHost(host, partEpoch), hostEpochs)
	return rec.value.sign(revision != 0), err
}

// sign is what an epoch record says of its host's life, or that there is none.
func (e Epoch) sign(there bool) inventory.Sign {
	return inventory.Sign{Removed: !there, Fenced: e.Fenced, Why: e.Why, BootID: e.BootID}
}

// unchanged compares that the key was last written at the revision; 0 means that it does not exist.
func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

// exists compares that the key is there.
func exists(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
}

// absent compares that the key is not there.
func absent(key string) clientv3.Cmp { return unchanged(key, 0) }

// commit runs a transaction under the writer's epoch. It returns false when one of the caller's comparisons failed, and
// ErrEpochOver when the epoch did. The epoch is compared by the revision of its key, which is read at the first use and
// again after a failed comparison.
func (w *Writer) commit(ctx context.Context, cmps []clientv3.Cmp, ops ...clientv3.Op) (bool, error) {
	return w.transact(ctx, false, cmps, ops)
}

// add is commit for what adds something that somebody asked for: a VM or more of it, a network, a token, a host, a migration. When the store
// is almost full it is fault.NoResources. All else must go on then: it is small, bounded, or makes room.
func (w *Writer) add(ctx context.Context, cmps []clientv3.Cmp, ops ...clientv3.Op) (bool, error) {
	return w.transact(ctx, true, cmps, ops)
}

func (w *Writer) transact(ctx context.Context, adding bool, cmps []clientv3.Cmp, ops []clientv3.Op) (bool, error) {
	key := keyHost(w.host, partEpoch)
	for range attemptsMax {
		revision, err := w.epochRevision(ctx)
		if err != nil {
			return false, err
		}
		guarded := append([]clientv3.Cmp{unchanged(key, revision)}, cmps...)
		otherwise := []clientv3.Op{clientv3.OpGet(key)}
		if w.term != nil {
			guarded = append(guarded, w.term.stands())
			otherwise = append(otherwise, clientv3.OpGet(keyTerm))
		}
		if err := w.intercepted(false); err != nil {
			return false, err
		}
		if adding {
			guarded = append(guarded, absent(keyFull))
			otherwise = append(otherwise, clientv3.OpGet(keyFull))
		}
		resp, err := w.s.txn(ctx, guarded, ops, otherwise)
		if err != nil {
			return false, err
		}
		if resp.Succeeded {
			return true, w.intercepted(true)
		}
		if w.term != nil && !w.term.in(resp.Responses[1].GetResponseRange().GetKvs()) {
			return false, w.term.refusal()
		}
		if kvs := resp.Responses[len(otherwise)-1].GetResponseRange().GetKvs(); adding && len(kvs) == 1 {
			return false, refusal(kvs[0].GetValue())
		}
		kvs := resp.Responses[0].GetResponseRange().GetKvs()
		if len(kvs) == 1 && kvs[0].GetModRevision() == revision {
			return false, nil
		}
		if err := w.learnEpoch(kvs); err != nil {
			return false, err
		}
	}
	return false, fault.New(fault.Conflict, "epoch of host %s changes all the time: is the agent running twice?", w.host)
}

func (w *Writer) intercepted(done bool) error {
	if w.intercept == nil {
		return nil
	}
	return w.intercept(done)
}

func (w *Writer) epochRevision(ctx context.Context) (int64, error) {
	w.mu.Lock()
	revision := w.revision
	w.mu.Unlock()
	if revision != 0 {
		return revision, nil
	}
	resp, err := w.s.get(ctx, keyHost(w.host, partEpoch))
	if err != nil {
		return 0, err
	}
	if err := w.learnEpoch(resp.Kvs); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revision, nil
}

// learnEpoch keeps the revision of the epoch's key if it still holds the writer's epoch.
func (w *Writer) learnEpoch(kvs []*mvccpb.KeyValue) error {
	if len(kvs) == 0 {
		return fault.New(fault.Conflict, "epoch %d of host %s: %w: the cluster does not know the host any more: join it again", w.epoch, w.host, ErrEpochOver)
	}
	rec, err := hostEpochs.unpack(keyHost(w.host, partEpoch), kvs[0].GetValue())
	if err != nil {
		return err
	}
	if rec.value.Epoch != w.epoch {
		if rec.value.Fenced {
			return fault.New(fault.Conflict, "epoch %d of host %s: %w: the host was fenced: %s", w.epoch, w.host, ErrEpochOver, rec.value.Why)
		}
		if rec.value.Restored {
			return fault.New(fault.Conflict, "epoch %d of host %s: %w: %w (now epoch %d)", w.epoch, w.host, ErrEpochOver, ErrRestored, rec.value.Epoch)
		}
		return fault.New(fault.Conflict, "epoch %d of host %s: %w: its agent was started again (now epoch %d)",
			w.epoch, w.host, ErrEpochOver, rec.value.Epoch)
	}
	w.mu.Lock()
	w.revision = kvs[0].GetModRevision()
	w.mu.Unlock()
	return nil
}
