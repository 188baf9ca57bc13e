// Package store is Godwit's typed inventory on etcd, and the only package that knows etcd.
//
// Serve runs an embedded member, Open connects to one. A Store reads; everything that acts goes through a Writer, which
// puts the writing host's epoch into every transaction, so that an agent that was started again, or declared dead, can
// no longer change anything (docs/architecture.md, "State").
//
// # Keys
//
// One key per object and writer, every value an Envelope (kind, schema number, binary protobuf record):
//
//	/godwit/cluster                     name of the cluster, written once at init
//	/godwit/host/H/epoch                starts of the host's agent; exists from the moment the host is a member
//	/godwit/host/H/spec|status          the host's own agent
//	/godwit/host/H/standing             the leader: whether it lives, and why not
//	/godwit/host/H/cert/SERIAL          a certificate of the host, by who signed it and by the host's agent
//	/godwit/member/H                    the leader: what is planned for the store's member on the host
//	/godwit/removal/H                   who asked for the host's removal; afterwards the leader
//	/godwit/ca                          key of the CA, sealed with a secret that every host has
//	/godwit/revoked                     the CA's list of certificates that it has taken back, by the leader
//	/godwit/vm/ID/spec                  the user
//	/godwit/vm/ID/run                   owner or heir, each write compares the revision that was read
//	/godwit/vm/ID/status                the owning agent
//	/godwit/vm/ID/place                 the leader: why it is blocked, or was started again
//	/godwit/vm/ID/migration             id of the one migration of the VM that is not over
//	/godwit/vm-name/NAME                id of the VM of that name
//	/godwit/mac/ADDRESS                 id of the VM whose NIC has that MAC address
//	/godwit/network/ID/spec             the user
//	/godwit/migration/ID/spec           who asked
//	/godwit/migration/ID/status         the source's agent, later the target's
//	/godwit/token/ID                    the host that made it; used once
//	/godwit/task/ID/spec|status         the host that does the work
//	/godwit/event/ID                    the host that saw it, once; ids sort by time
//	/godwit/user/NAME                   an admin
//	/godwit/user-token/ID               an admin; what it opens is not in it
//	/godwit/request/KEY                 the host that executes the call of that idempotency key
//	/godwit-alive/H                     the host's own agent, every second
//	/godwit-leader/term|beat            the leader, or who follows it (leader.go)
//	/godwit-full                        the leader, while nothing new is taken (upkeep.go)
//	/godwit/plan/KIND:OBJECT            who asked, once; then the leader
//
// # Versions
//
// A record of a newer schema is refused with fault.Incompatible. A field that this version does not know survives its
// writes: a write changes, in the record as it was read, only what its caller changed (merge.go).
//
// # Errors and time
//
// Every call takes a context, and is given up after CallTimeout as fault.Unavailable when the store does not answer. The
// outcome of a write that was given up is unknown; all writes here may be repeated: one that was in fact done before is
// reported as done, or as the conflict that it now is. All methods may be called by many goroutines.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The bounds of a connection.
const (
	// CallTimeout is how long one call waits for the store before it gives up as fault.Unavailable.
	CallTimeout = 5 * time.Second

	// A peer whose kernel is gone is noticed after keepaliveIdle + keepaliveCount*keepaliveInterval = 4 s, one whose
	// process hangs after pingEvery + pingTimeout (gRPC allows no shorter ping than 10 s).
	keepaliveIdle     = 2 * time.Second
	keepaliveInterval = time.Second
	keepaliveCount    = 2
	pingEvery         = 10 * time.Second
	pingTimeout       = 3 * time.Second

	dialTimeout       = 2 * time.Second
	reconnectDelayMin = 100 * time.Millisecond
	reconnectDelayMax = time.Second // gRPC's own default grows to two minutes
)

// Config says where the store is.
type Config struct {
	// Endpoints are URLs like https://10.0.0.1:2379; any one will do.
	Endpoints []string
	// TLS is the client side of mTLS; nil connects in the clear, for endpoints of scheme http.
	TLS *tls.Config
}

// Store reads the inventory. Make one with Open.
type Store struct {
	client         *clientv3.Client
	single         *clientv3.Client // for calls to one member by its URL; see Open
	config         Config
	failure        *lastFailure
	migrationsKept int
	tasksKept      int
	eventsKept     int
	auditKept      int
	requestsKept   int
}

// Open connects to the store and proves with one read that it answers. Without an answer in CallTimeout it is
// fault.Unavailable; a later Open may succeed. The connection mends itself for as long as the Store lives. The caller
// closes it.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, fault.New(fault.Invalid, "open store: no endpoint given: set store.endpoints, or join a cluster first")
	}
	failure := &lastFailure{}
	// The client reads its endpoints without their lock when it dials the one member that a call names (client.go, dial). SetEndpoints changes those of
	// the first client at any time; those of the second stay what they are, and are asked for nothing.
	var both [2]*clientv3.Client
	for i := range both {
		var err error
		if both[i], err = clientv3.New(clientv3.Config{
			Endpoints:            cfg.Endpoints,
			TLS:                  cfg.TLS,
			Logger:               zap.NewNop(),
			DialKeepAliveTime:    pingEvery,
			DialKeepAliveTimeout: pingTimeout,
			DialOptions:          dialOptions(cfg.TLS, failure),
		}); err != nil {
			return nil, fault.New(fault.Invalid, "open store %s: %w", strings.Join(cfg.Endpoints, ", "), err)
		}
	}
	s := &Store{client: both[0], single: both[1], config: cfg, failure: failure, migrationsKept: MigrationsKept, tasksKept: TasksKept, eventsKept: EventsKept, auditKept: AuditKept, requestsKept: RequestsKept}
	if _, err := s.get(ctx, keyCluster); err != nil {
		_ = s.Close() // it never worked; err says why
		return nil, err
	}
	return s, nil
}

// Close ends the connection and all watches.
func (s *Store) Close() error {
	var all error
	for _, c := range []*clientv3.Client{s.client, s.single} {
		if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
			all = errors.Join(all, fault.New(fault.Internal, "close store: %w", err))
		}
	}
	return all
}

// get reads one key or, with options, a range.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	resp, err := s.client.Get(call, key, opts...)
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	return resp, nil
}

// txn runs one transaction. A transaction whose answer was lost may have been done.
func (s *Store) txn(ctx context.Context, cmps []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	resp, err := s.client.Txn(call).If(cmps...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	return resp, nil
}

// explain turns etcd's and gRPC's errors into one line that says what to do. ctx is the caller's: when it ended, the
// caller wanted that, or had no more time, and nothing is known about the store.
func (s *Store) explain(ctx context.Context, err error) error {
	where := strings.Join(s.Endpoints(), ", ")
	if cause := ctx.Err(); cause != nil {
		return fault.New(fault.Canceled, "store %s: %w", where, cause)
	}
	text := err.Error()
	if st, ok := status.FromError(err); ok {
		text = st.Message()
	}
	switch code := status.Code(err); {
	case strings.Contains(text, "database space exceeded"):
		return fault.New(fault.NoResources, "store %s is full and takes no writes until the leader has made room: see godwit cluster info", where)
	case code == codes.InvalidArgument, code == codes.FailedPrecondition:
		return fault.New(fault.Internal, "store %s: %w", where, err)
	case errors.Is(err, context.DeadlineExceeded), code == codes.DeadlineExceeded:
		text = "no answer in " + CallTimeout.String()
	}
	if last := s.failure.get(); last != nil {
		text = last.Error()
	}
	if strings.Contains(text, "tls:") || strings.Contains(text, "x509:") {
		return fault.New(fault.Denied, "store %s and this host do not trust each other: check that both belong to the same cluster and that their clocks are right: %s", where, text)
	}
	return fault.New(fault.Unavailable, "store %s does not answer: check that godwit runs on that host and that the network reaches it: %s", where, text)
}
