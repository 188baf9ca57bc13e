package qmp

import (
	"encoding/json"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The events that Godwit acts on (QAPI reference; all seen with QEMU 10.0).
const (
	EventStop              = "STOP"
	EventResume            = "RESUME"
	EventReset             = "RESET"
	EventShutdown          = "SHUTDOWN"
	EventPowerdown         = "POWERDOWN"
	EventMigration         = "MIGRATION"
	EventMigrationPass     = "MIGRATION_PASS"
	EventGuestPanicked     = "GUEST_PANICKED"
	EventGuestCrashloaded  = "GUEST_CRASHLOADED"
	EventWatchdog          = "WATCHDOG"
	EventBlockIOError      = "BLOCK_IO_ERROR"
	EventBlockCorrupted    = "BLOCK_IMAGE_CORRUPTED"
	EventBlockJobReady     = "BLOCK_JOB_READY"
	EventBlockJobCompleted = "BLOCK_JOB_COMPLETED"
	EventJobStatusChange   = "JOB_STATUS_CHANGE"
	EventDeviceDeleted     = "DEVICE_DELETED"
	EventUnplugError       = "DEVICE_UNPLUG_GUEST_ERROR"
	EventPortChange        = "VSERPORT_CHANGE"
	EventStreamConnected   = "NETDEV_STREAM_CONNECTED"
	EventStreamGone        = "NETDEV_STREAM_DISCONNECTED"
)

// Bounds of a subscription. The upper half of the queue is kept for vital events, so that chatter which a guest can
// cause as often as it likes cannot push out what the hand-over of a VM hangs on.
const (
	EventsQueuedMax  = 128
	eventsChatterMax = EventsQueuedMax / 2
)

// vital names the events whose loss would leave an observer with a wrong picture of the VM.
var vital = map[string]bool{
	EventStop: true, EventResume: true, EventReset: true, EventShutdown: true, EventPowerdown: true,
	EventMigration: true, EventMigrationPass: true, EventGuestPanicked: true, EventGuestCrashloaded: true,
	EventBlockIOError: true, EventBlockCorrupted: true, EventBlockJobReady: true, EventBlockJobCompleted: true,
	EventJobStatusChange: true, EventDeviceDeleted: true, EventUnplugError: true,
	"WAKEUP": true, "SUSPEND": true, "SUSPEND_DISK": true, "BLOCK_JOB_ERROR": true, "BLOCK_JOB_CANCELLED": true,
	"MEMORY_FAILURE": true, "UNPLUG_PRIMARY": true, "COLO_EXIT": true,
}

// Event is something that happened in QEMU.
type Event struct {
	Name string
	Time time.Time       // by the clock of QEMU's host; zero when QEMU could not read it
	Data json.RawMessage // may be empty
}

// Decode unmarshals the event's data into v; an event without data leaves v alone.
func (e Event) Decode(v any) error {
	if len(e.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return fault.New(fault.Internal, "event %s: unexpected data: %w", e.Name, err)
	}
	return nil
}

// Migration returns the status that a MIGRATION event reports, "" for any other event.
func (e Event) Migration() MigrationStatus {
	var d struct {
		Status MigrationStatus `json:"status"`
	}
	if e.Name != EventMigration || e.Decode(&d) != nil {
		return ""
	}
	return d.Status
}

// Pass returns the round that a MIGRATION_PASS event begins, 0 for any other event.
func (e Event) Pass() int {
	var d struct {
		Pass int `json:"pass"`
	}
	if e.Name != EventMigrationPass || e.Decode(&d) != nil {
		return 0
	}
	return d.Pass
}

// Cause is what RESET, SHUTDOWN and GUEST_PANICKED say of their origin.
type Cause struct {
	Guest  bool   `json:"guest"`  // the guest did it itself
	Reason string `json:"reason"` // QAPI "ShutdownCause": "guest-shutdown", "host-qmp-quit", "guest-panic", ...
	Action string `json:"action"` // GUEST_PANICKED: what QEMU did about it, "pause"
}

// Cause returns the origin of a RESET, SHUTDOWN or GUEST_PANICKED event; the zero Cause when it has none.
func (e Event) Cause() Cause {
	var c Cause
	if e.Decode(&c) != nil {
		return Cause{}
	}
	return c
}

// Events is a subscription. One goroutine reads C; Close may be called by any.
type Events struct {
	// C gives events in QEMU's order. It is closed when the connection or the subscription ends; Err then says why.
	C <-chan Event

	c       chan Event // written and closed under conn.mu
	conn    *Conn
	names   map[string]bool // nil: all
	dropped int
	err     error
}

// Subscribe returns the events with the given names, all events without any, from now on. Ask for the state you follow
// (Status, Migration) after subscribing, not before, and nothing falls between.
//
// The reader never waits for a subscriber. One that leaves EventsQueuedMax events unread loses the subscription, not
// single events: C is closed and Err says so, and the subscriber must ask QEMU for the state again. Only events that
// report no change of state (RTC_CHANGE, NIC_RX_FILTER_CHANGED, ...) are dropped singly, from half that number on; Dropped counts them.
func (c *Conn) Subscribe(names ...string) *Events {
	ch := make(chan Event, EventsQueuedMax)
	e := &Events{C: ch, c: ch, conn: c}
	if len(names) > 0 {
		e.names = make(map[string]bool, len(names))
		for _, n := range names {
			e.names[n] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		e.end(c.err)
		return e
	}
	c.events[e] = struct{}{}
	return e
}

// publish offers an event to all subscribers.
func (c *Conn) publish(ev Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range c.events {
		if e.names != nil && !e.names[ev.Name] {
			continue
		}
		if !vital[ev.Name] && len(e.c) >= eventsChatterMax {
			e.dropped++
			continue
		}
		select {
		case e.c <- ev:
		default:
			delete(c.events, e)
			e.end(fault.New(fault.NoResources, "%d events were not read in time: ask for the state again", EventsQueuedMax))
		}
	}
}

// end closes the subscription; the caller holds conn.mu and takes it off the list.
func (e *Events) end(err error) {
	e.err = err
	close(e.c)
}

// Err returns why C was closed, nil while it is open.
func (e *Events) Err() error {
	e.conn.mu.Lock()
	defer e.conn.mu.Unlock()
	return e.err
}

// Dropped returns how many events without a change of state were dropped because nobody read them in time.
func (e *Events) Dropped() int {
	e.conn.mu.Lock()
	defer e.conn.mu.Unlock()
	return e.dropped
}

// Close ends the subscription. Events not read yet stay in C.
func (e *Events) Close() {
	e.conn.mu.Lock()
	defer e.conn.mu.Unlock()
	if _, ok := e.conn.events[e]; !ok {
		return
	}
	delete(e.conn.events, e)
	e.end(fault.New(fault.Canceled, "the subscription was closed here"))
}
