package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// events implements EventService.
type events struct{ agent *agent.Agent }

// eventsMax bounds the events of the past in one answer.
const eventsMax = 1000

// ListEvents streams the events that there are, oldest first, and with follow every further one as it is written.
func (s *events) ListEvents(ctx context.Context, req *connect.Request[godwitv1.ListEventsRequest], out *connect.ServerStream[godwitv1.ListEventsResponse]) error {
	m := req.Msg
	var since time.Time
	switch back := m.GetSince().AsDuration(); {
	case back < 0:
		return fault.New(fault.Invalid, "events since %v ago: give a duration that is not negative", back)
	case back > 0:
		since = time.Now().Add(-back)
	}
	send := func(e inventory.Event) error {
		if !wanted(m, since, e) {
			return nil
		}
		return out.Send(&godwitv1.ListEventsResponse{Event: wire.Event(e)})
	}
	past := func(all []inventory.Event) error {
		limit := eventsMax
		if n := int(m.GetLimit()); n > 0 && n < limit {
			limit = n
		}
		first := len(all) // of those that are shown
		for left := limit; first > 0 && left > 0; first-- {
			if wanted(m, since, all[first-1]) {
				left--
			}
		}
		for _, e := range all[first:] {
			if err := send(e); err != nil {
				return err
			}
		}
		return nil
	}
	if m.GetFollow() {
		return s.agent.FollowEvents(ctx, past, send)
	}
	all, err := s.agent.Events(ctx)
	if err != nil {
		return err
	}
	return past(all)
}

// wanted reports whether the event is one that was asked for.
func wanted(m *godwitv1.ListEventsRequest, since time.Time, e inventory.Event) bool {
	object := m.GetObject()
	return e.Audit == m.GetAudit() && !e.Time.Before(since) && (object == "" || object == e.Object || object == e.ObjectName)
}
