package rpc

import (
	"context"
	"crypto/sha256"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
)

// KeyHeader carries a call's idempotency key. A repeat of the call with the same key and message gets the first answer again
// (task.Keeper.Once); what it means for each call is in keyed below.
const KeyHeader = "Idempotency-Key"

// keeping is how long a call's key is remembered.
type keeping int

const (
	ignored    keeping = iota // the call changes nothing, or asks for a state and may be repeated as it is
	remembered                // by the agent that executes it; a repeat after that agent's end is executed again
	recorded                  // in the store, for a day, for all hosts
)

// keyed says for each call that takes a key how long it is remembered; all others ignore it.
//
// What makes, moves or removes something is recorded. To start, stop, pause or resume a VM leads to the same state however often it is
// asked, and costs no write to the store: the agent's memory spares a repeat the answer that the VM runs already. So does it for tokens,
// whose secret the store must not hold.
var keyed = map[string]keeping{
	"HostService/CreateToken":   remembered,
	"HostService/CreateNetwork": recorded,
	"MemberService/RemoveHost":  remembered,

	"FencingService/ConfirmDead": remembered,

	"VMService/CreateVM":    recorded,
	"VMService/StartVM":     remembered,
	"VMService/StopVM":      remembered,
	"VMService/ResetVM":     recorded,
	"VMService/PauseVM":     remembered,
	"VMService/ResumeVM":    remembered,
	"VMService/DestroyVM":   recorded,
	"VMService/MigrateVM":   recorded,
	"VMService/CloneVM":     recorded,
	"VMService/SetTemplate": recorded,
	"VMService/MoveVM":      recorded,
	"VMService/SetVM":       recorded,
	"VMService/AddDisk":     recorded,
	"VMService/RemoveDisk":  recorded,
	"VMService/GrowDisk":    recorded,
	"VMService/AddNIC":      recorded,
	"VMService/RemoveNIC":   recorded,

	"ImageService/CreateImage": recorded,
	"ImageService/ImportImage": recorded,
	"ImageService/CloneImage":  recorded,
	"ImageService/GrowImage":   recorded,
	"ImageService/DeleteImage": recorded,

	"UserService/CreateUser":      recorded,
	"UserService/SetUserRole":     recorded,
	"UserService/DeleteUser":      recorded,
	"UserService/CreateUserToken": remembered,
	"UserService/RevokeUserToken": recorded,
}

func keepingOf(procedure string) keeping {
	_, name, _ := strings.Cut(procedure, "/godwit.v1.")
	return keyed[name]
}

// Mutates reports whether the call takes an idempotency key.
func Mutates(procedure string) bool { return keepingOf(procedure) != ignored }

// calls executes a call with a key once, and gives its handler the key.
type calls struct{ keeper *task.Keeper }

// WrapUnary implements connect.Interceptor.
func (c calls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		key, kept := req.Header().Get(KeyHeader), keepingOf(req.Spec().Procedure)
		if key == "" || kept == ignored {
			return next(ctx, req)
		}
		who := task.CallerOf(ctx)
		who.Request = key
		return c.once(task.WithCaller(ctx, who), req, key, kept, next)
	}
}

// once executes the call, or answers it as it was answered before.
func (c calls) once(ctx context.Context, req connect.AnyRequest, key string, kept keeping, next connect.UnaryFunc) (connect.AnyResponse, error) {
	method, ok := req.Spec().Schema.(protoreflect.MethodDescriptor)
	message, isProto := req.Any().(proto.Message)
	if !ok || !isProto {
		return nil, fault.New(fault.Internal, "call %s has no protobuf description", req.Spec().Procedure)
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	sum := sha256.Sum256(text)
	var own connect.AnyResponse
	call := task.Call{Key: key, Procedure: req.Spec().Procedure, Hash: sum[:], Durable: kept == recorded}
	answer, err := c.keeper.Once(ctx, call, func(ctx context.Context) ([]byte, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, plain(err)
		}
		own = resp
		m, _ := resp.Any().(proto.Message) // as its request is
		return proto.Marshal(m)
	})
	if err != nil || own != nil {
		return own, err
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	again := kind.New().Interface()
	if err := proto.Unmarshal(answer, again); err != nil {
		return nil, fault.New(fault.Internal, "recorded answer of request %s: %w", key, err)
	}
	return repeated{connect.NewResponse(&emptypb.Empty{}), again}, nil
}

// repeated is an answer that was read from a record.
type repeated struct {
	connect.AnyResponse

	message proto.Message
}

// Any implements connect.AnyResponse.
func (r repeated) Any() any { return r.message }

// WrapStreamingClient implements connect.Interceptor.
func (calls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (calls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
