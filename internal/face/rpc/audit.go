package rpc

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The kinds of events about calls.
const (
	callDone    = "call.done"
	callFailed  = "call.failed"
	callRefused = task.CallRefused // by the gate: nothing of it was executed
)

// refused writes down that a call was turned away: one that would change something, or one of somebody who could not say who he is.
func (g *gate) refused(ctx context.Context, call string, r right, who identity, why error) {
	if g.note == nil || !r.audited && !who.stranger || fault.Is(why, fault.Canceled) {
		return
	}
	by := who.name
	if who.stranger {
		by = "a stranger"
	}
	g.note(ctx, inventory.Event{Kind: callRefused, Severity: inventory.Warning, Audit: true, By: by, From: who.from, Message: call + ": " + why.Error()})
}

// audits writes down each call that changes something: who made it, from where, about what, and how it ended. Calls that a host
// passes on were written down there.
type audits struct {
	note func(context.Context, inventory.Event)
}

// write notes one call.
func (a audits) write(ctx context.Context, call string, message any, outcome string, err error) {
	who := task.CallerOf(ctx)
	e := inventory.Event{Kind: callDone, Audit: true, By: who.Name, From: who.From, Message: call}
	if m, ok := message.(proto.Message); ok {
		object, details := told(m.ProtoReflect())
		e.ObjectName = object
		if details != "" {
			e.Message += " " + details
		}
	}
	if outcome != "" {
		e.Message += ": " + outcome
	}
	if err != nil {
		e.Kind, e.Severity = callFailed, inventory.Warning
		e.Message += ": " + plain(err).Error()
	}
	a.note(ctx, e)
}

// audited returns the call of the procedure if it is to be written down here.
func audited(ctx context.Context, procedure string) (string, bool) {
	call, r, ok := callOf(procedure)
	return call, ok && r.audited && task.CallerOf(ctx).Via == ""
}

// WrapUnary implements connect.Interceptor.
func (a audits) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if call, ok := audited(ctx, req.Spec().Procedure); ok {
			a.write(ctx, call, req.Any(), "", err)
		}
		return resp, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (audits) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. A call that lasts is written down when its first message came, which says what it is
// about: nobody knows when it ends. If it fails, that is written down too. A caller that leaves, or whom the gate sends away, is no failure:
// the one is the usual end, the other the gate has written down.
func (a audits) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		call, ok := audited(ctx, conn.Spec().Procedure)
		if !ok {
			return next(ctx, conn)
		}
		var first any
		err := next(ctx, &firstMessage{StreamingHandlerConn: conn, tell: func(message any) {
			first = message
			a.write(ctx, call, message, "opened", nil)
		}})
		if err != nil && ctx.Err() == nil && !fault.Is(plain(err), fault.Canceled) {
			a.write(ctx, call, first, "", err)
		}
		return err
	}
}

// firstMessage tells the first message that the caller sends.
type firstMessage struct {
	connect.StreamingHandlerConn

	tell func(any)
}

// Receive implements connect.StreamingHandlerConn.
func (c *firstMessage) Receive(message any) error {
	err := c.StreamingHandlerConn.Receive(message)
	if err == nil && c.tell != nil {
		c.tell(message)
		c.tell = nil
	}
	return err
}

// Fields of messages: what a call is about, in the order in which they are looked for, and what else of it is worth to be known. Nothing else of
// a message gets into an event: it may hold secrets.
var (
	objectFields = []protoreflect.Name{"vm", "migration", "task", "user", "id", "name", "host", "file"}
	detailFields = []protoreflect.Name{"target", "host", "datastore", "role", "name", "disk", "nic", "force", "delete", "delete_disks", "dry_run", "lifetime"}
	tokenField   = protoreflect.Name("token") // its id; of a join token the text, which is a secret
)

// told returns what a message says of the call.
func told(m protoreflect.Message) (object, details string) {
	fields := m.Descriptor().Fields()
	var used protoreflect.Name
	for _, name := range objectFields {
		if object = textOf(m, fields.ByName(name)); object != "" {
			used = name
			break
		}
	}
	if f := fields.ByName(tokenField); object == "" && f != nil && m.Descriptor().Name() == "RevokeUserTokenRequest" {
		object = textOf(m, f)
	}
	var parts []string
	for _, name := range detailFields {
		if text := textOf(m, fields.ByName(name)); text != "" && name != used {
			parts = append(parts, string(name)+"="+text)
		}
	}
	return object, strings.Join(parts, " ")
}

// wordMax bounds what of one field gets into an event.
const wordMax = 128

// textOf returns a field's value as text: "" for one that is not there or not set, and for kinds that say nothing in a line.
func textOf(m protoreflect.Message, f protoreflect.FieldDescriptor) string {
	if f == nil || f.IsList() || f.IsMap() || !m.Has(f) {
		return ""
	}
	var text string
	switch f.Kind() { //nolint:exhaustive // what else there is are bytes and numbers
	case protoreflect.StringKind:
		text = m.Get(f).String()
	case protoreflect.BoolKind:
		text = "yes"
	case protoreflect.MessageKind:
		switch f.Message().FullName() {
		case "godwit.v1.File":
			file := m.Get(f).Message()
			text = file.Get(f.Message().Fields().ByName("path")).String()
			if ds := file.Get(f.Message().Fields().ByName("datastore")).String(); ds != "" {
				text += "@" + ds
			}
		case "google.protobuf.Duration":
			if d, ok := m.Get(f).Message().Interface().(interface{ AsDuration() time.Duration }); ok {
				text = d.AsDuration().String()
			}
		}
	}
	if len(text) > wordMax {
		text = text[:wordMax] + "…"
	}
	return text
}
