package store

import (
	"context"

	"google.golang.org/protobuf/proto"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
)

// edit is one read-change-write of one record.
type edit[T any] struct {
	what    string // of whom, for messages: "run record of vm web-1"
	key     string
	codec   codec[T]
	missing error                                         // returned when the record is not there; nil: it is made
	change  func(*T) error                                // its error ends the edit and is returned as it is
	with    func(T) ([]clientv3.Cmp, []clientv3.Op)       // more to compare and do in the same transaction; may be nil
	adds    bool                                          // it is refused while the store is almost full (Writer.add)
	changed bool                                          // with is for a change only: without one nothing is written
	refused func(context.Context) error                   // asked when the transaction failed: nil means try again; may be nil
	before  func(context.Context) ([]clientv3.Cmp, error) // asked before each attempt; may be nil
}

// apply reads the record, changes it and writes it back if nobody wrote it in between, else starts over, at most
// attemptsMax times. A change that changes nothing is not written, unless more goes with it. It returns what the store holds now.
func apply[T any](ctx context.Context, w *Writer, e edit[T]) (T, error) {
	var zero T
	for range attemptsMax {
		var cmps []clientv3.Cmp
		if e.before != nil {
			more, err := e.before(ctx)
			if err != nil {
				return zero, err
			}
			cmps = more
		}
		old, revision, err := load(ctx, w.s, e.key, e.codec)
		if err != nil {
			return zero, err
		}
		if revision == 0 && e.missing != nil {
			return zero, e.missing
		}
		// The change gets a value of its own: lists in old.value would otherwise be changed under it.
		value := e.codec.from(e.codec.to(old.value))
		if err := e.change(&value); err != nil {
			return zero, err
		}
		if revision != 0 && (e.with == nil || e.changed) && proto.Equal(e.codec.to(old.value), e.codec.to(value)) {
			return value, nil
		}
		text, err := e.codec.repack(old, value)
		if err != nil {
			return zero, err
		}
		cmps = append(cmps, unchanged(e.key, revision))
		ops := []clientv3.Op{clientv3.OpPut(e.key, text)}
		if e.with != nil {
			moreCmps, moreOps := e.with(value)
			cmps, ops = append(cmps, moreCmps...), append(ops, moreOps...)
		}
		done, err := w.transact(ctx, e.adds, cmps, ops)
		if err != nil {
			return zero, err
		}
		if done {
			return value, nil
		}
		if e.refused != nil {
			if err := e.refused(ctx); err != nil {
				return zero, err
			}
		}
	}
	return zero, fault.New(fault.Conflict, "%s was changed by others %d times meanwhile: try again", e.what, attemptsMax)
}

// load reads one record; revision 0 means that there is none, and the record is a blank one.
func load[T any](ctx context.Context, s *Store, key string, c codec[T]) (stored[T], int64, error) {
	resp, err := s.get(ctx, key)
	if err != nil {
		return stored[T]{}, 0, err
	}
	if len(resp.Kvs) == 0 {
		return stored[T]{value: c.from(c.blank()), envelope: newEnvelope(c.kind)}, 0, nil
	}
	rec, err := c.unpack(key, resp.Kvs[0].Value)
	return rec, resp.Kvs[0].ModRevision, err
}
