package migrate

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/converge"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// Bounds of the source's waits.
const (
	tickEvery    = time.Second            // between two looks at a wait: release repeated, owner read
	callTimeout  = 3 * time.Second        // of one call to QEMU, store or target agent
	prepareMax   = 30 * time.Second       // the target starts its QEMU
	heirRetry    = 300 * time.Millisecond // between two tries to name the heir while the store is away
	gateMax      = 500 * time.Millisecond // the guest stands and waits for the store to take the heir
	stallMax     = 5 * time.Second        // without a byte while the VM is stopped: the stream is cut
	precopyStall = 30 * time.Second       // without a byte while the VM runs: the same
	inboxSize    = 64                     // events that wait for the loop; senders block beyond it
)

// BandwidthFree is the bandwidth that QEMU is told when a migration has no limit of its own; QEMU's default would be 128 MiB/s.
const BandwidthFree inventory.BytesPerSecond = 100 << 30

// SourceConfig is what a Source works with.
type SourceConfig struct {
	Migration inventory.Migration
	Attempt   handover.Attempt
	VM        inventory.VM
	Epoch     uint64
	Process   *qemu.Process // nil only when a restart found none
	Ports     []Port
	Switch    Ports
	Records   Records
	Far       Far
	Journal   Journal
	Authority func() time.Duration        // how far this host's authority reaches
	Cont      func(context.Context) error // lets the own vCPUs run, unless the authority is short by then
	Free      func(context.Context) error // removes what is left of the VM here once its QEMU is gone
	Log       *slog.Logger
}

// Source drives the source's end of one migration. Run is called once; Cancel, Status and Changed by anyone.
type Source struct {
	SourceConfig

	inbox   chan sourceEvent
	look    chan struct{} // somebody saw the VM's run record change
	news    chan struct{} // the status has changed in a way that the store is to know
	machine handover.Source
	relay   Relay
	cut     context.CancelFunc // ends the stream; under shared

	shared  sync.Mutex // guards what the loop and its helpers share
	told    bool       // QEMU was told to migrate
	sending bool       // a release or discard is under way
	stopped time.Time  // QEMU's STOP event

	ports    sync.Mutex // guards the two below, and is held over calls to the switch so that they keep their order
	held     bool       // the switch ports are held
	rings    []ring     // of the guest's cards, in the order of Ports
	vcpusOff bool       // the guest has stopped: only the end of the migration opens the ports
	full     int        // follow's: how often the guest had not taken all that was written to it by the time of its stop

	writing sync.Mutex // held over writes of the status to the store, so that no older one overtakes

	mu      sync.Mutex
	status  inventory.MigrationStatus
	changed chan struct{} // closed and replaced at every change of status
}

// sourceEvent is an event with a reply to a user's cancel.
type sourceEvent struct {
	handover.SourceEvent
	refused chan<- string // of a cancel: why it cannot be
}

// NewSource returns the source's end of a new migration.
func NewSource(c SourceConfig) *Source {
	return &Source{
		SourceConfig: c, machine: handover.NewSource(c.Migration.ID), inbox: make(chan sourceEvent, inboxSize),
		look: make(chan struct{}, 1), news: make(chan struct{}, 1),
		status: c.Migration.Status, changed: make(chan struct{}), cut: func() {},
	}
}

// RestoreSource returns the source's end of a migration that a former agent of this host drove.
func RestoreSource(c SourceConfig, entries []handover.Entry) *Source {
	s := NewSource(c)
	s.machine = handover.RestoreSource(c.Migration.ID, entries)
	s.told = true
	return s
}

// Look makes the source read the VM's run record now rather than at its next tick; anyone may call it.
func (s *Source) Look() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// Status returns the migration's status with the latest progress, and a channel that is closed at the next change.
func (s *Source) Status() (inventory.MigrationStatus, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status, s.changed
}

// set changes the status in memory and wakes whoever watches.
func (s *Source) set(change func(*inventory.MigrationStatus)) inventory.MigrationStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
	close(s.changed)
	s.changed = make(chan struct{})
	return s.status
}

// Cancel asks to end the migration. It returns fault.Conflict with the reason when it is too late.
func (s *Source) Cancel(ctx context.Context, by string) error {
	refused := make(chan string, 1)
	event := sourceEvent{handover.SourceEvent{Kind: handover.SourceCancel, Authority: s.Authority(), Why: "canceled by " + by}, refused}
	select {
	case s.inbox <- event:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		status, changed := s.Status()
		if status.Phase.Final() {
			if status.Phase == inventory.Completed {
				return fault.New(fault.Conflict, "it is over: the VM runs on %s", s.Migration.Spec.Target)
			}
			return nil
		}
		select {
		case why := <-refused:
			return fault.New(fault.Conflict, "%s", why)
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// AuthorityShort says that this host's authority is over: before the release the attempt is given up, and the VM stays here. It does not wait; one that
// finds no room may be said again.
func (s *Source) AuthorityShort() {
	select {
	case s.inbox <- sourceEvent{SourceEvent: handover.SourceEvent{Kind: handover.SourceAbort, Authority: s.Authority(), Why: "the source's authority is over"}}:
	default:
	}
}

// Restore drives a migration that a former agent began: found is what this agent saw of the VM (handover.Attempt, SourceFound).
func (s *Source) Restore(ctx context.Context, found handover.SourceEvent) Outcome {
	return s.run(ctx, func(context.Context) {
		found.Authority = s.Authority()
		if found.Why == "" {
			found.Why = "the source's agent was restarted"
		}
		s.post(ctx, found)
	})
}

// Run drives the migration to its end, and returns earlier only when ctx ends: then QEMU ends the copy by itself, and
// the next agent of this host finds the rest in the journal.
func (s *Source) Run(ctx context.Context) Outcome {
	return s.run(ctx, s.begin)
}

// run is the loop: one event, the machine's step, its actions in order.
func (s *Source) run(ctx context.Context, start func(context.Context)) Outcome {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	var events *qmp.Events
	if s.Process != nil && s.Process.QMP() != nil {
		events = s.Process.QMP().Subscribe(qmp.EventMigration, qmp.EventStop)
		defer events.Close()
		tasks.Go(func() { s.listen(ctx, events) })
	}
	tasks.Go(func() { start(ctx) })
	tasks.Go(func() { s.keepWriting(ctx) })
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var gate <-chan time.Time // ends the guest's wait for an heir
	var gone <-chan struct{}  // nil once it is known
	if s.Process != nil {
		gone = s.Process.Done()
	}
	for !s.machine.Final() {
		var e sourceEvent
		select {
		case <-ctx.Done():
			return Interrupted
		case <-gone:
			gone = nil
			e.Kind, e.Why = handover.SourceGone, s.Process.Exit().String()
		case e = <-s.inbox:
		case <-s.look:
			s.watchWaits(ctx, &tasks)
			continue
		case <-gate:
			e.Kind, e.Why = handover.SourceAbort, "the store did not take the heir within "+gateMax.String()+" while the guest stood"
		case <-tick.C:
			s.watchWaits(ctx, &tasks)
			e.Kind = handover.SourceTick
		}
		if e.Authority == 0 {
			e.Authority = s.Authority()
		}
		s.step(ctx, &tasks, e)
		if s.machine.State != handover.SourceGate {
			gate = nil
		} else if gate == nil {
			gate = time.After(gateMax)
		}
	}
	status, _ := s.Status()
	switch {
	case s.machine.Dropped:
		return Nowhere
	case status.Phase == inventory.Completed:
		return Away
	case s.machine.Gone:
		return Nowhere
	}
	return Here
}

// post hands an event to the loop, unless ctx has ended.
func (s *Source) post(ctx context.Context, e handover.SourceEvent) {
	select {
	case s.inbox <- sourceEvent{SourceEvent: e}:
	case <-ctx.Done():
	}
}

// step gives the machine one event and does what it answers; a failed action becomes the next event.
func (s *Source) step(ctx context.Context, tasks *sync.WaitGroup, e sourceEvent) {
	before := s.machine
	s.observe(ctx, e.SourceEvent)
	next, actions := s.machine.Step(e.SourceEvent)
	s.machine = next
	if before.State != next.State {
		s.Log.LogAttrs(ctx, slog.LevelInfo, "hand-over", slog.String("event", string(e.Kind)), slog.String("from", string(before.State)),
			slog.String("to", string(next.State)), slog.String("why", e.Why))
	}
	for _, a := range actions {
		if a.Kind == handover.RefuseCancel {
			if e.refused != nil {
				e.refused <- a.Why
			}
			continue
		}
		if failed := s.do(ctx, tasks, a); failed.Kind != "" {
			failed.Authority = s.Authority()
			s.step(ctx, tasks, sourceEvent{SourceEvent: failed})
			return
		}
	}
}

// observe does what follows from an event itself, whatever the machine thinks of it: the ports follow the vCPUs.
func (s *Source) observe(ctx context.Context, e handover.SourceEvent) {
	switch e.Kind { //nolint:exhaustive // only those that tell where the vCPUs run
	case handover.SourceStopped:
		s.holdPorts(ctx, true)
		s.set(func(st *inventory.MigrationStatus) { st.Phase = inventory.Switchover })
	case handover.SourceFailed, handover.SourceResumed, handover.SourceFoundRunning:
		s.reopenPorts(ctx)
	}
}

// begin prepares both ends and starts the copy. Whatever goes wrong becomes an abort.
func (s *Source) begin(ctx context.Context) {
	boot, err := s.prepare(ctx)
	if err != nil {
		s.set(func(st *inventory.MigrationStatus) { st.Reasons = fault.Reasons(err) })
		s.post(ctx, handover.SourceEvent{Kind: handover.SourceAbort, Why: err.Error()})
		return
	}
	s.copy(ctx, boot)
}

// prepare has the target get ready, of which it returns the boot, and tells QEMU what it needs to know.
func (s *Source) prepare(ctx context.Context) (boot string, err error) {
	within, done := context.WithTimeout(ctx, prepareMax)
	defer done()
	s.report(func(st *inventory.MigrationStatus) { st.Phase, st.Started = inventory.Admitted, time.Now() })
	ready, err := s.Far.Prepare(within, PrepareRequest{
		Migration: s.Migration.ID, VM: s.VM, Source: s.Migration.Spec.Source, SourceEpoch: s.Epoch,
	})
	if err == nil {
		err = fault.Refuse(fault.Incompatible, ready.Reasons)
	}
	if err != nil {
		return "", fault.Wrap("target", string(s.Migration.Spec.Target), err)
	}
	conn := s.Process.QMP()
	if err := conn.SetMigrationCapabilities(within, Capabilities()); err != nil {
		return "", err
	}
	bandwidth := s.Migration.Spec.Bandwidth
	if bandwidth == 0 {
		bandwidth = BandwidthFree
	}
	return ready.Boot, conn.SetMigrationParameters(within, qmp.MigrationParameters{BandwidthMax: bandwidth, DowntimeMax: Track(s.Migration.Spec).Downtime()})
}

// Track returns the arithmetic of a migration that is to begin.
func Track(m inventory.MigrationSpec) converge.Track {
	return converge.New(converge.Config{Downtime: converge.DowntimeLimit(m.DowntimeMax)})
}

// copy lets QEMU migrate through a Relay, names the heir meanwhile, by the boot on which the target prepared, and follows the rounds.
func (s *Source) copy(ctx context.Context, boot string) {
	abort := func(err error) {
		s.post(ctx, handover.SourceEvent{Kind: handover.SourceAbort, Why: err.Error()})
	}
	s.report(func(st *inventory.MigrationStatus) { st.Phase = inventory.Prepared })
	stream, err := s.Far.Stream(ctx, s.Migration.ID)
	if err != nil {
		abort(err)
		return
	}
	path := filepath.Join(string(s.Process.Dir()), "migration.sock")
	near, err := s.connectQEMU(ctx, path)
	if err != nil {
		_ = stream.Close() // nothing was sent
		abort(err)
		return
	}
	s.set(func(st *inventory.MigrationStatus) { st.Phase = inventory.PreCopy })
	s.trackPorts(ctx)
	var both sync.WaitGroup
	within, cut := context.WithCancel(ctx)
	s.shared.Lock()
	s.cut = cut
	s.shared.Unlock()
	both.Go(func() { s.nameHeir(within, boot) })
	both.Go(func() { s.follow(within) })
	far, ok := stream.(halfCloser)
	if !ok {
		abort(fault.New(fault.Internal, "the stream to the target cannot be half closed"))
		cut()
		both.Wait()
		return
	}
	err = s.relay.Run(within, near, far)
	s.Log.LogAttrs(ctx, slog.LevelDebug, "stream ended", slog.Any("err", err), slog.Int64("bytes", s.relay.Sent()))
	cut()
	both.Wait()
}

// connectQEMU listens on a socket of its own and tells QEMU to migrate there; it returns QEMU's connection.
func (s *Source) connectQEMU(ctx context.Context, path string) (halfCloser, error) {
	_ = os.Remove(path) // of an attempt before
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fault.New(fault.Internal, "migration socket: %w", err)
	}
	defer func() { _ = l.Close() }() // removes the socket file; QEMU is connected or gave up
	if user := s.Process.User(); user != nil {
		if err := os.Chown(path, int(user.UID), int(user.GID)); err != nil {
			return nil, fault.New(fault.Internal, "migration socket: %w", err)
		}
	}
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	stop := context.AfterFunc(within, func() { _ = l.Close() }) // ends Accept
	defer stop()
	s.shared.Lock()
	s.told = true
	s.shared.Unlock()
	if err := s.Process.QMP().Migrate(within, "unix:"+path); err != nil {
		return nil, fault.Wrap("migrate", "", err)
	}
	near, err := l.Accept()
	if err != nil {
		return nil, fault.New(fault.Unavailable, "qemu did not open its migration stream: %w", err)
	}
	half, ok := near.(halfCloser)
	if !ok {
		return nil, fault.New(fault.Internal, "migration socket: no unix connection")
	}
	return half, nil
}

// nameHeir writes the heir while the memory is being copied; no heir, no switchover.
func (s *Source) nameHeir(ctx context.Context, boot string) {
	attempt := s.Attempt
	attempt.Boot = boot
	for {
		within, done := context.WithTimeout(ctx, callTimeout)
		err := s.Records.SetHeir(within, s.VM.ID, attempt)
		done()
		switch {
		case err == nil:
			s.post(ctx, handover.SourceEvent{Kind: handover.SourceHeirSet})
			return
		case fault.Is(err, fault.Conflict), fault.Is(err, fault.NotFound):
			s.post(ctx, handover.SourceEvent{Kind: handover.SourceHeirRefused, Why: err.Error()})
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(heirRetry):
		}
	}
}

// listen turns QEMU's events into the machine's.
func (s *Source) listen(ctx context.Context, events *qmp.Events) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, more := <-events.C:
			if !more {
				return // QEMU ended or the monitor was lost: Done or the tick tells
			}
			s.Log.LogAttrs(ctx, slog.LevelDebug, "qemu", slog.String("event", e.Name), slog.String("status", string(e.Migration())), slog.Time("at", e.Time))
			if e.Name == qmp.EventStop {
				s.shared.Lock()
				s.stopped = e.Time
				s.shared.Unlock()
				continue
			}
			switch e.Migration() { //nolint:exhaustive // the others change nothing
			case qmp.MigrationPreSwitchover:
				s.post(ctx, handover.SourceEvent{Kind: handover.SourceStopped})
			case qmp.MigrationCompleted:
				s.post(ctx, handover.SourceEvent{Kind: handover.SourceCompleted, Authority: s.Authority()})
			case qmp.MigrationFailed, qmp.MigrationCancelled:
				s.post(ctx, handover.SourceEvent{Kind: handover.SourceFailed, Why: s.whyFailed(ctx, e.Migration())})
			}
		}
	}
}

// whyFailed asks QEMU for its reason.
func (s *Source) whyFailed(ctx context.Context, status qmp.MigrationStatus) string {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	m, err := s.Process.QMP().Migration(within)
	if err != nil || m.Error == "" {
		return "qemu reports " + string(status)
	}
	return "qemu reports " + string(status) + ": " + m.Error
}
