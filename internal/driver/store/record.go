package store

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// schema is the version of all record kinds that this binary writes, and the newest that it reads. When a kind has to
// change in a way that added fields cannot express, it gets a number of its own here and a step from the old one in
// unpack.
const schema = 1

// codec knows one kind of record: its message, and how it becomes a noun and back.
type codec[T any] struct {
	kind  string
	blank func() proto.Message
	to    func(T) proto.Message
	from  func(proto.Message) T
}

// blanks makes the empty message of every kind that has a codec, for Dump.
var blanks = map[string]func() proto.Message{}

func newCodec[T, M any, PM interface {
	*M
	proto.Message
}](kind string, to func(T) PM, from func(PM) T,
) codec[T] {
	blank := func() proto.Message { return PM(new(M)) }
	blanks[kind] = blank
	return codec[T]{
		kind:  kind,
		blank: blank,
		to:    func(t T) proto.Message { return to(t) },
		from: func(m proto.Message) T {
			pm, _ := m.(PM) // made by blank or to; a nil reads as the zero noun
			return from(pm)
		},
	}
}

// The kinds. The "pointer" kinds hold only an id, in a message of the type that it is an id of. The cluster's record
// is a string value; a later message with more fields reads it as its field 1.
var (
	vmSpecs           = newCodec("vm/spec", wire.VMSpec, wire.FromVMSpec)
	vmRuns            = newCodec("vm/run", wire.VMRun, wire.FromVMRun)
	vmStatuses        = newCodec("vm/status", storedVMStatus, wire.FromVMStatus)
	vmMigrations      = newCodec("vm/migration", migrationPointer, fromMigrationPointer)
	vmNames           = newCodec("vm-name", vmPointer, fromVMPointer)
	macs              = newCodec("mac", vmPointer, fromVMPointer)
	hostSpecs         = newCodec("host/spec", wire.HostSpec, wire.FromHostSpec)
	hostStatuses      = newCodec("host/status", wire.HostStatus, wire.FromHostStatus)
	hostStandings     = newCodec("host/standing", wire.HostStanding, wire.FromHostStanding)
	vmPlaces          = newCodec("vm/place", wire.VMPlace, wire.FromVMPlace)
	renewals          = newCodec("alive", aliveMessage, fromAliveMessage)
	hostEpochs        = newCodec("host/epoch", epochMessage, fromEpochMessage)
	networkSpecs      = newCodec("network/spec", wire.NetworkSpec, wire.FromNetworkSpec)
	migrationSpecs    = newCodec("migration/spec", wire.MigrationSpec, wire.FromMigrationSpec)
	migrationStatuses = newCodec("migration/status", wire.MigrationStatus, wire.FromMigrationStatus)
	tokens            = newCodec("token", tokenMessage, fromTokenMessage)
	taskSpecs         = newCodec("task/spec", wire.TaskSpec, wire.FromTaskSpec)
	taskStatuses      = newCodec("task/status", wire.TaskStatus, wire.FromTaskStatus)
	eventRecords      = newCodec("event", wire.Event, wire.FromEvent)
	memberPlans       = newCodec("member", wire.MemberPlan, wire.FromMemberPlan)
	removals          = newCodec("removal", wire.Removal, wire.FromRemoval)
	hostCertificates  = newCodec("host/cert", certificateMessage, fromCertificateMessage)
	sealedKeys        = newCodec("ca", sealedMessage, (*godwitv1.Sealed).GetBox)
	revocationLists   = newCodec("revoked", revocationsMessage, (*godwitv1.Revocations).GetList)
	requestRecords    = newCodec("request", wire.Request, wire.FromRequest)
	plans             = newCodec("plan", wire.Plan, wire.FromPlan)
	users             = newCodec("user", wire.User, wire.FromUser)
	userTokens        = newCodec("user-token", userTokenMessage, fromUserTokenMessage)
	clusters          = newCodec("cluster", wrapperspb.String, (*wrapperspb.StringValue).GetValue)
)

// storedVMStatus leaves out usage and guest: the store never holds telemetry.
func storedVMStatus(s inventory.VMStatus) *godwitv1.VMStatus {
	s.Usage, s.Guest = inventory.Usage{}, inventory.Guest{}
	return wire.VMStatus(s)
}

func vmPointer(id inventory.VMID) *godwitv1.VM    { return &godwitv1.VM{Id: string(id)} }
func fromVMPointer(m *godwitv1.VM) inventory.VMID { return inventory.VMID(m.GetId()) }

func fromEpochMessage(m *godwitv1.Epoch) Epoch {
	return Epoch{Epoch: m.GetEpoch(), BootID: m.GetBootId(), Fences: m.GetFences(), Fenced: m.GetFenced(), Why: m.GetWhy(), Restored: m.GetRestored()}
}

func aliveMessage(r inventory.Renewal) *godwitv1.Alive {
	return &godwitv1.Alive{Sequence: r.Sequence, Lease: durationpb.New(r.Lease), Fencing: string(r.Fencing)}
}

func fromAliveMessage(m *godwitv1.Alive) inventory.Renewal {
	return inventory.Renewal{Sequence: m.GetSequence(), Lease: m.GetLease().AsDuration(), Fencing: inventory.Fencing(m.GetFencing())}
}

func migrationPointer(id inventory.MigrationID) *godwitv1.Migration {
	return &godwitv1.Migration{Id: string(id)}
}

func fromMigrationPointer(m *godwitv1.Migration) inventory.MigrationID {
	return inventory.MigrationID(m.GetId())
}

func epochMessage(e Epoch) *godwitv1.Epoch {
	return &godwitv1.Epoch{Epoch: e.Epoch, BootId: e.BootID, Fences: e.Fences, Fenced: e.Fenced, Why: e.Why, Restored: e.Restored}
}

func certificateMessage(c inventory.HostCertificate) *godwitv1.HostCertificate {
	return &godwitv1.HostCertificate{Expires: timestamppb.New(c.Expires)}
}

func fromCertificateMessage(m *godwitv1.HostCertificate) inventory.HostCertificate {
	return inventory.HostCertificate{Expires: m.GetExpires().AsTime()}
}

func sealedMessage(box []byte) *godwitv1.Sealed            { return &godwitv1.Sealed{Box: box} }
func revocationsMessage(list []byte) *godwitv1.Revocations { return &godwitv1.Revocations{List: list} }

// stored is a record as it was read: what a write starts from. One that was not there has no message.
type stored[T any] struct {
	value    T
	envelope *godwitv1.Envelope
	message  proto.Message
}

// unpack reads a value. Errors name the key, because the reader of the message has nothing else to look for.
func (c codec[T]) unpack(key string, value []byte) (stored[T], error) {
	env := new(godwitv1.Envelope)
	if err := proto.Unmarshal(value, env); err != nil {
		return stored[T]{}, fault.New(fault.Internal, "record %s is no godwit record: %w", key, err)
	}
	if env.GetSchema() > schema {
		return stored[T]{}, fault.New(fault.Incompatible, "record %s was written by a newer godwit (schema %d, this one reads up to %d): upgrade godwit on this host", key, env.GetSchema(), schema)
	}
	if env.GetKind() != c.kind {
		return stored[T]{}, fault.New(fault.Internal, "record %s is of kind %q, not %q", key, env.GetKind(), c.kind)
	}
	m := c.blank()
	if err := proto.Unmarshal(env.GetRecord(), m); err != nil {
		return stored[T]{}, fault.New(fault.Internal, "record %s is damaged: %w", key, err)
	}
	return stored[T]{value: c.from(m), envelope: env, message: m}, nil
}

// pack writes a record that was not there before.
func (c codec[T]) pack(value T) (string, error) {
	return c.repack(stored[T]{envelope: newEnvelope(c.kind)}, value)
}

// repack writes value over what was read, keeping everything that this version does not know.
func (c codec[T]) repack(old stored[T], value T) (string, error) {
	message := c.to(value)
	if old.message != nil {
		merge(old.message, c.to(c.from(old.message)), message)
		message = old.message
	}
	record, err := proto.Marshal(message)
	if err != nil {
		return "", fault.New(fault.Invalid, "%s record cannot be written (names must be UTF-8): %w", c.kind, err)
	}
	old.envelope.Record, old.envelope.Schema = record, schema
	b, err := proto.Marshal(old.envelope)
	if err != nil {
		return "", fault.New(fault.Internal, "%s record: %w", c.kind, err)
	}
	return string(b), nil
}

func newEnvelope(kind string) *godwitv1.Envelope { return &godwitv1.Envelope{Kind: kind} }
