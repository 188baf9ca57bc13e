package task

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of remembered requests.
const (
	requestsMax = 1000                   // finished ones, in memory
	requestLook = 200 * time.Millisecond // between two looks at a request that another host executes
	requestPing = 10                     // looks between two questions whether that host answers
	answerMax   = 64 << 10               // bytes of an answer in the store
)

// Call is a call with an idempotency key, as a face got it.
type Call struct {
	Key       string
	Procedure string
	Hash      []byte // of the message
	Durable   bool   // remembered in the store, for all hosts and restarts of agents; otherwise by this agent only
}

// request is a call in this agent's memory.
type request struct {
	call   Call
	over   chan struct{}
	answer []byte
	err    error
	keep   bool // the answer holds for repeats
}

// scope is the execution of one call.
type scope struct {
	keeper *Keeper
	call   Call
	again  bool // this agent executed it before without an answer

	mu      sync.Mutex
	claimed bool
	over    bool // taken over from an execution that died
	record  inventory.Request
}

type scopeKey struct{}

func scopeOf(ctx context.Context) *scope {
	s, _ := ctx.Value(scopeKey{}).(*scope)
	return s
}

// errElsewhere tells Once that another host has the request by now.
var errElsewhere = errors.New("another host executes this request")

// Once executes a call, and gives a repeat of it (the same key, procedure and message) the first answer again: that of an execution which
// goes on, here or on another host, is waited for. Another message under the same key is fault.Conflict. f returns the answer's message; its
// error is an answer too, but for the kinds that say that a later try may go better (Unavailable, Canceled, Internal): then a repeat is
// executed again.
//
// A durable call is recorded in the store when its task begins (Run), by the host that executes it, and not by one that passes it on. If
// that host's agent ended without an answer, a repeat takes over: TakenOver, Intended and ID help it to find what was made. A call without a
// task leaves no record, and so changed nothing that a repeat could do twice.
func (k *Keeper) Once(ctx context.Context, call Call, f func(context.Context) ([]byte, error)) ([]byte, error) {
	if err := inventory.CheckRequestKey(call.Key); err != nil {
		return nil, err
	}
	for {
		k.mu.Lock()
		r := k.requests[call.Key]
		if r == nil {
			r = &request{call: call, over: make(chan struct{})}
			k.requests[call.Key] = r
			k.mu.Unlock()
			return k.first(ctx, r, f)
		}
		k.mu.Unlock()
		select {
		case <-r.over:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		switch {
		case !r.keep:
		case r.call.Procedure != call.Procedure || !bytes.Equal(r.call.Hash, call.Hash):
			return nil, otherMessage(call.Key)
		default:
			return r.answer, r.err
		}
	}
}

func otherMessage(key string) error {
	return fault.New(fault.Conflict, "request key %s was used for another call: take a new key", key)
}

// first executes the call and lets those who repeat it have the answer.
func (k *Keeper) first(ctx context.Context, r *request, f func(context.Context) ([]byte, error)) ([]byte, error) {
	defer close(r.over)
	var final bool
	r.answer, final, r.err = k.execute(ctx, r.call, f)
	r.keep = final && !transient(r.err)
	k.mu.Lock()
	defer k.mu.Unlock()
	if !r.keep {
		delete(k.requests, r.call.Key)
		return r.answer, r.err
	}
	if k.finished = append(k.finished, r); len(k.finished) > requestsMax {
		delete(k.requests, k.finished[0].call.Key)
		k.finished = slices.Delete(k.finished, 0, 1)
	}
	return r.answer, r.err
}

func transient(err error) bool {
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Canceled, fault.Internal, fault.Unknown:
		return err != nil
	case fault.NotFound, fault.Exists, fault.Invalid, fault.Denied, fault.Conflict, fault.Incompatible, fault.NoResources:
	}
	return false
}

// execute asks the store for an answer, and executes the call when there is none. final says that the answer may be kept in memory: that of
// a durable call which this host did not claim stands in the store, or was a refusal that changed nothing.
func (k *Keeper) execute(ctx context.Context, call Call, f func(context.Context) ([]byte, error)) (answer []byte, final bool, err error) {
	k.mu.Lock()
	records := k.records
	k.mu.Unlock()
	if !call.Durable || records == nil {
		answer, err = f(ctx)
		return answer, true, err
	}
	for {
		s := &scope{keeper: k, call: call}
		found, err := k.recorded(ctx, records, s)
		if err != nil {
			return nil, false, err
		}
		if found != nil {
			answer, err = answerOf(*found)
			return answer, false, err
		}
		answer, err = f(context.WithValue(ctx, scopeKey{}, s))
		if errors.Is(err, errElsewhere) {
			continue
		}
		return answer, s.finish(ctx, answer, err), err
	}
}

// recorded returns the request when it has an answer, after waiting for it if it is being executed; nil when it is to be executed here.
func (k *Keeper) recorded(ctx context.Context, records Records, s *scope) (*inventory.Request, error) {
	for looks := 1; ; looks++ {
		r, dead, err := records.Request(ctx, s.call.Key)
		switch {
		case fault.Is(err, fault.NotFound):
			return nil, nil
		case err != nil:
			return nil, err
		case r.Procedure != s.call.Procedure || !bytes.Equal(r.Hash, s.call.Hash):
			return nil, otherMessage(s.call.Key)
		case r.Done:
			return &r, nil
		case dead:
			return nil, nil
		case r.Host == k.host: // and it is not in this agent's memory, or it would have been found there
			s.again = true
			return nil, nil
		case looks%requestPing == 0 && !records.Answers(ctx, r.Host):
			return nil, fault.New(fault.Unavailable, "host %s executes this request and does not answer: repeat it when that host is back", r.Host)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(requestLook):
		}
	}
}

// answerOf returns what a finished request was answered.
func answerOf(r inventory.Request) ([]byte, error) {
	if r.Fault == "" {
		return r.Answer, nil
	}
	kind := fault.ParseKind(r.Fault)
	if len(r.Reasons) > 0 {
		return nil, fault.Refuse(kind, r.Reasons)
	}
	return nil, fault.New(kind, "%s", r.Message)
}

// claim records that this host executes ctx's request, if it has one: from then on no other host does.
func claim(ctx context.Context, id inventory.TaskID) error {
	s := scopeOf(ctx)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claimed {
		return nil
	}
	s.keeper.mu.Lock()
	records := s.keeper.records
	s.keeper.mu.Unlock()
	now := time.Now().UTC()
	r, ok, err := records.ClaimRequest(context.WithoutCancel(ctx), inventory.Request{
		Key: s.call.Key, Procedure: s.call.Procedure, Hash: s.call.Hash, Begun: now, Task: id,
	}, s.again)
	if err != nil {
		return err
	}
	if !ok {
		return errElsewhere
	}
	s.claimed, s.over, s.record = true, !r.Begun.Equal(now), r
	return nil
}

// finish records the answer of a claimed request; a failure is made good later. It reports whether the request was claimed.
func (s *scope) finish(ctx context.Context, answer []byte, err error) bool {
	s.mu.Lock()
	claimed := s.claimed
	s.mu.Unlock()
	if !claimed {
		return false
	}
	write := func(ctx context.Context, records Records) error { return records.DropRequest(ctx, s.call.Key) }
	if !transient(err) && len(answer) <= answerMax {
		write = func(ctx context.Context, records Records) error {
			return records.UpdateRequest(ctx, s.call.Key, func(r *inventory.Request) {
				r.Done, r.Answer = true, answer
				if err == nil {
					return
				}
				r.Answer, r.Fault, r.Message = nil, fault.KindOf(err).String(), clean(err.Error())
				if refusal, ok := errors.AsType[*fault.RefusalError](err); ok {
					for _, reason := range refusal.Reasons {
						r.Reasons = append(r.Reasons, clean(reason))
					}
				}
			})
		}
	}
	k := s.keeper
	k.mu.Lock()
	records := k.records
	k.mu.Unlock()
	within, done := context.WithTimeout(context.WithoutCancel(ctx), answerWait) // the caller may be gone
	defer done()
	if write(within, records) != nil {
		k.writeSoon(write)
	}
	return true
}

// TakenOver reports whether ctx's request was begun by an agent that ended before it had an answer: what it made may be there.
func TakenOver(ctx context.Context) bool {
	s := scopeOf(ctx)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// Key returns ctx's idempotency key if the request is recorded in the store, else "".
func Key(ctx context.Context) string {
	if s := scopeOf(ctx); s != nil {
		return s.call.Key
	}
	return ""
}

// ID returns the id with that prefix for what ctx's request makes: the same one in every execution of it, so that a repeat finds the
// object. Without a recorded request it is fresh.
func ID(ctx context.Context, prefix string) string {
	s := scopeOf(ctx)
	if s == nil {
		return inventory.DerivedID(prefix, string(inventory.NewTaskID()), time.Now())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return inventory.DerivedID(prefix, s.call.Key, s.record.Begun)
}

// Intend records files that the operation is about to make and that are not there yet, before it makes them: if the agent ends midway,
// a repeat knows by Intended that they may be removed. Without a recorded request it does nothing. An error means that the
// operation must not go on.
func Intend(ctx context.Context, files ...string) error {
	s := scopeOf(ctx)
	if s == nil || len(files) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	made := slices.Clone(s.record.Made)
	for _, f := range files {
		if !slices.Contains(made, f) {
			made = append(made, f)
		}
	}
	if !s.claimed || len(made) == len(s.record.Made) {
		return nil
	}
	s.keeper.mu.Lock()
	records := s.keeper.records
	s.keeper.mu.Unlock()
	if err := records.UpdateRequest(ctx, s.call.Key, func(r *inventory.Request) { r.Made = made }); err != nil {
		return err
	}
	s.record.Made = made
	return nil
}

// Intended reports whether an earlier execution of ctx's request was about to make the file, so that it is nobody else's.
func Intended(ctx context.Context, file string) bool {
	s := scopeOf(ctx)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over && slices.Contains(s.record.Made, file)
}
