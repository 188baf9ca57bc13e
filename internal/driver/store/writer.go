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

// epochRecord is what a host's epoch key holds.
type epochRecord struct {
	epoch  uint64
	bootID string
}

// Writer changes the inventory on behalf of one start of one host's agent. Make one with Store.As.
type Writer struct {
	s     *Store
	host  inventory.HostID
	epoch uint64

	mu       sync.Mutex
	revision int64 // of the epoch's key when it last held our epoch; 0: not read yet
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

// NextEpoch counts a start of the host's agent and returns the new epoch, from 1. Every Writer with an older one is
// refused from then on. bootID is the kernel's boot id, by which others can tell a new boot from a new agent.
func (s *Store) NextEpoch(ctx context.Context, host inventory.HostID, bootID string) (uint64, error) {
	if err := checkID("host", host); err != nil {
		return 0, err
	}
	key := keyHost(host, partEpoch)
	for range attemptsMax {
		resp, err := s.get(ctx, key)
		if err != nil {
			return 0, fault.Wrap("start epoch of", "host "+string(host), err)
		}
		old := stored[epochRecord]{}
		var revision int64
		var value string
		if len(resp.Kvs) == 0 {
			old.value.epoch = 0
			value, err = hostEpochs.pack(epochRecord{epoch: 1, bootID: bootID})
		} else {
			revision = resp.Kvs[0].ModRevision
			if old, err = hostEpochs.unpack(key, resp.Kvs[0].Value); err != nil {
				return 0, err
			}
			value, err = hostEpochs.repack(old, epochRecord{epoch: old.value.epoch + 1, bootID: bootID})
		}
		if err != nil {
			return 0, err
		}
		done, err := s.txn(ctx, []clientv3.Cmp{unchanged(key, revision)}, []clientv3.Op{clientv3.OpPut(key, value)}, nil)
		if err != nil {
			return 0, fault.Wrap("start epoch of", "host "+string(host), err)
		}
		if done.Succeeded {
			return old.value.epoch + 1, nil
		}
	}
	return 0, fault.New(fault.Conflict, "start epoch of host %s: it changed %d times meanwhile: is the agent running twice?", host, attemptsMax)
}

// Epoch returns the host's current epoch and the boot id that came with it, or fault.NotFound when the host never
// started an agent.
func (s *Store) Epoch(ctx context.Context, host inventory.HostID) (epoch uint64, bootID string, err error) {
	key := keyHost(host, partEpoch)
	resp, err := s.get(ctx, key)
	if err != nil {
		return 0, "", err
	}
	if len(resp.Kvs) == 0 {
		return 0, "", noHost(host)
	}
	rec, err := hostEpochs.unpack(key, resp.Kvs[0].Value)
	return rec.value.epoch, rec.value.bootID, err
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
	key := keyHost(w.host, partEpoch)
	for range attemptsMax {
		revision, err := w.epochRevision(ctx)
		if err != nil {
			return false, err
		}
		guarded := append([]clientv3.Cmp{unchanged(key, revision)}, cmps...)
		resp, err := w.s.txn(ctx, guarded, ops, []clientv3.Op{clientv3.OpGet(key)})
		if err != nil {
			return false, err
		}
		if resp.Succeeded {
			return true, nil
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
	if rec.value.epoch != w.epoch {
		return fault.New(fault.Conflict, "epoch %d of host %s: %w: its agent was started again, or the host was declared dead (now epoch %d)",
			w.epoch, w.host, ErrEpochOver, rec.value.epoch)
	}
	w.mu.Lock()
	w.revision = kvs[0].GetModRevision()
	w.mu.Unlock()
	return nil
}
