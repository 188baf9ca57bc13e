package store

import (
	"bytes"
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Request returns the request of that key as the store has it, and whether its execution ended without an answer: the agent that
// executed it was started again since. fault.NotFound when the key is new.
func (w *Writer) Request(ctx context.Context, key string) (r inventory.Request, dead bool, err error) {
	rec, revision, err := load(ctx, w.s, keyRequest(key), requestRecords)
	if err != nil {
		return inventory.Request{}, false, err
	}
	if revision == 0 {
		return inventory.Request{}, false, fault.New(fault.NotFound, "request %s is new", key)
	}
	dead, err = w.s.died(ctx, rec.value)
	return rec.value, dead, err
}

// died reports whether the agent that executed the request is gone without having left an answer.
func (s *Store) died(ctx context.Context, r inventory.Request) (bool, error) {
	if r.Done {
		return false, nil
	}
	epoch, err := s.Epoch(ctx, r.Host)
	if fault.Is(err, fault.NotFound) {
		return true, nil // the host was removed
	}
	return epoch.Epoch > r.Epoch, err
}

// ClaimRequest records that the writer's host executes the request, in one transaction for all who try. It returns the record as it is
// then, and whether the claim was made: it is not when another execution goes on, or has ended, and then the record is that one's.
// A claim takes over from an execution that died: Begun and Made are that one's. again says that this agent's own execution
// ended without an answer and the claim is repeated.
func (w *Writer) ClaimRequest(ctx context.Context, r inventory.Request, again bool) (inventory.Request, bool, error) {
	if err := inventory.CheckRequestKey(r.Key); err != nil {
		return r, false, err
	}
	r.Host, r.Epoch = w.host, w.epoch
	key := keyRequest(r.Key)
	for range attemptsMax {
		old, revision, err := load(ctx, w.s, key, requestRecords)
		if err != nil {
			return r, false, err
		}
		if revision != 0 {
			found := old.value
			if found.Procedure != r.Procedure || !bytes.Equal(found.Hash, r.Hash) {
				return found, false, nil
			}
			own := found.Host == w.host && found.Epoch == w.epoch
			dead, err := w.s.died(ctx, found)
			if err != nil {
				return r, false, err
			}
			if mayTake := dead || own && again; found.Done || !mayTake {
				return found, false, nil
			}
			r.Begun, r.Made = found.Begun, found.Made
		}
		value, err := requestRecords.pack(r)
		if err != nil {
			return r, false, err
		}
		done, err := w.commit(ctx, []clientv3.Cmp{unchanged(key, revision)}, clientv3.OpPut(key, value))
		if err != nil || done {
			return r, done, err
		}
	}
	return r, false, fault.New(fault.Conflict, "request %s was changed by others %d times meanwhile: try again", r.Key, attemptsMax)
}

// UpdateRequest changes the record of a request that the writer's agent executes; fault.Conflict when another one does by now.
func (w *Writer) UpdateRequest(ctx context.Context, key string, change func(*inventory.Request)) error {
	_, err := apply(ctx, w, edit[inventory.Request]{
		what:    "request " + key,
		key:     keyRequest(key),
		codec:   requestRecords,
		missing: fault.New(fault.NotFound, "request %s is not known any more", key),
		change: func(r *inventory.Request) error {
			if r.Host != w.host || r.Epoch != w.epoch || r.Done {
				return fault.New(fault.Conflict, "request %s is executed by host %s", key, r.Host)
			}
			change(r)
			return nil
		},
	})
	return err
}

// DropRequest forgets a request that the writer's agent executes, so that a repeat executes it again.
func (w *Writer) DropRequest(ctx context.Context, key string) error {
	old, revision, err := load(ctx, w.s, keyRequest(key), requestRecords)
	if err != nil || revision == 0 || old.value.Host != w.host || old.value.Epoch != w.epoch || old.value.Done {
		return err
	}
	_, err = w.commit(ctx, []clientv3.Cmp{unchanged(keyRequest(key), revision)}, clientv3.OpDelete(keyRequest(key)))
	return err
}

func (s *Store) requests(ctx context.Context) ([]inventory.Request, error) {
	resp, err := s.get(ctx, rootRequest, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "requests", err)
	}
	var all []inventory.Request
	for _, kv := range resp.Kvs {
		r, err := read(requestRecords, string(kv.Key), kv)
		if err != nil {
			return nil, fault.Wrap("list", "requests", err)
		}
		all = append(all, r)
	}
	return slices.Clip(all), nil
}
