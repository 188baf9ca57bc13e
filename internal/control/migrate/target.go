package migrate

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// preparedMax is how long a prepared target waits for its source's stream before it gives up: a source that died in
// between must not leave a QEMU behind.
const preparedMax = time.Minute

// TargetConfig is what a Target works with.
type TargetConfig struct {
	Migration inventory.MigrationID
	Attempt   handover.Attempt
	VM        inventory.VM
	Ports     []Port
	Switch    Ports
	Records   Records
	Journal   Journal
	Authority func() time.Duration
	// Cont lets the vCPUs of the incoming QEMU run, unless the authority is short by then.
	Cont func(context.Context, *qemu.Process) error
	// Start makes the incoming QEMU, its switch ports and its lock record; Free removes them once QEMU has ended.
	Start func(context.Context) (*qemu.Process, error)
	Free  func(context.Context) error
	Log   *slog.Logger
}

// Target drives the target's end of one migration. Run is called once; Prepare, Stream, Release and Discard by the RPC
// handlers, any number of times.
type Target struct {
	TargetConfig

	inbox   chan targetEvent
	machine handover.Target // the loop's own

	mu       sync.Mutex
	process  *qemu.Process
	streams  int // joined so far
	resumed  time.Time
	final    *ReleaseAnswer // known once the machine has answered a release
	ended    chan struct{}  // closed when Run returns
	prepared chan error     // one value when Start is through
}

// targetEvent is an event with the channel its answer goes to.
type targetEvent struct {
	handover.TargetEvent
	answered chan handover.TargetAction // of a release or discard
	read     handover.TargetState       // of what the store was read for: it says nothing to a machine that has gone on; empty: of anything else
}

// NewTarget returns the target's end of a migration that is being prepared.
func NewTarget(c TargetConfig) *Target {
	return &Target{
		TargetConfig: c, machine: handover.NewTarget(c.Migration), inbox: make(chan targetEvent, inboxSize),
		ended: make(chan struct{}), prepared: make(chan error, 1),
	}
}

// RestoreTarget returns the target's end that a former agent of this host began; process is nil when its QEMU is gone.
func RestoreTarget(c TargetConfig, entries []handover.Entry, process *qemu.Process) *Target {
	t := NewTarget(c)
	t.machine = handover.RestoreTarget(c.Migration, entries)
	t.process = process
	return t
}

// Process returns the QEMU, nil while there is none.
func (t *Target) Process() *qemu.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.process
}

// Prepared waits until the target listens, or says why it does not.
func (t *Target) Prepared(ctx context.Context) error {
	select {
	case err := <-t.prepared:
		t.prepared <- err // for the next one who asks
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run drives a new target to its end.
func (t *Target) Run(ctx context.Context) Outcome {
	return t.run(ctx, func(ctx context.Context) {
		err := t.begin(ctx)
		t.prepared <- err
		if err != nil {
			t.post(ctx, handover.TargetEvent{Kind: handover.TargetDiscard, Why: err.Error()})
			return
		}
		t.post(ctx, handover.TargetEvent{Kind: handover.TargetPrepared})
	})
}

// Restore drives a target that a former agent began; found is what this agent saw of its QEMU (handover.Attempt, TargetFound).
func (t *Target) Restore(ctx context.Context, found handover.TargetEvent) Outcome {
	t.prepared <- nil
	return t.run(ctx, func(ctx context.Context) {
		if p := t.Process(); p != nil {
			t.attend(ctx, p)
		}
		found.Authority, found.Why = t.Authority(), "the target's agent was restarted"
		t.post(ctx, found)
	})
}

// begin starts the incoming QEMU and makes it listen.
func (t *Target) begin(ctx context.Context) error {
	process, err := t.Start(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.process = process
	t.mu.Unlock()
	t.attend(ctx, process)
	conn := process.QMP()
	if err := conn.SetMigrationCapabilities(ctx, Capabilities()); err != nil {
		return err
	}
	return conn.MigrateIncoming(ctx, "unix:"+t.socket(process), false)
}

func (t *Target) socket(p *qemu.Process) string {
	return filepath.Join(string(p.Dir()), "incoming.sock")
}

// attend follows QEMU's events until it ends or ctx does.
func (t *Target) attend(ctx context.Context, p *qemu.Process) {
	events := p.QMP().Subscribe(qmp.EventMigration, qmp.EventResume)
	go func() { // ends with ctx, which ends with Run
		defer events.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.Done():
				t.post(ctx, handover.TargetEvent{Kind: handover.TargetGone, Why: p.Exit().String()})
				return
			case e, more := <-events.C:
				if !more {
					events = p.QMP().Subscribe(qmp.EventMigration, qmp.EventResume) // the monitor was lost; Done decides
					select {
					case <-ctx.Done():
						return
					case <-p.Done():
						continue
					case <-time.After(cancelEvery):
					}
					continue
				}
				t.heard(ctx, e)
			}
		}
	}()
}

func (t *Target) heard(ctx context.Context, e qmp.Event) {
	t.Log.LogAttrs(ctx, slog.LevelDebug, "qemu", slog.String("event", e.Name), slog.String("status", string(e.Migration())), slog.Time("at", e.Time))
	if e.Name == qmp.EventResume {
		t.mu.Lock()
		t.resumed = e.Time
		t.mu.Unlock()
		return
	}
	switch e.Migration() { //nolint:exhaustive // the others change nothing
	case qmp.MigrationCompleted:
		t.post(ctx, handover.TargetEvent{Kind: handover.TargetLoaded, Authority: t.Authority()})
	case qmp.MigrationFailed:
		t.post(ctx, handover.TargetEvent{Kind: handover.TargetGone, Why: "qemu could not load the stream"})
	}
}

// Stream joins the memory stream with the incoming QEMU; it returns when the stream has ended.
func (t *Target) Stream(ctx context.Context, stream net.Conn) error {
	far, ok := stream.(halfCloser)
	process := t.Process()
	if !ok || process == nil {
		return fault.New(fault.Conflict, "migration %s is not prepared here", t.Migration)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the stream
		select {
		case <-t.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", t.socket(process))
	if err != nil {
		return fault.New(fault.Unavailable, "incoming qemu: %w", err)
	}
	near, ok := conn.(halfCloser)
	if !ok {
		return fault.New(fault.Internal, "incoming qemu: no unix connection")
	}
	widen(conn, incomingBuffer)
	t.mu.Lock()
	t.streams++
	t.mu.Unlock()
	var relay Relay
	return relay.Run(ctx, far, near)
}

// Release gives the VM to this host and returns its final word. Without one before ctx ends the caller asks again.
func (t *Target) Release(ctx context.Context) (ReleaseAnswer, error) {
	t.mu.Lock()
	known := t.final
	t.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	a, err := t.ask(ctx, handover.TargetEvent{Kind: handover.TargetReleased, Authority: t.Authority()})
	if err != nil {
		return ReleaseAnswer{}, err
	}
	return t.answer(a), nil
}

// answer puts the machine's answer into words, and keeps it for repeated releases.
func (t *Target) answer(a handover.TargetAction) ReleaseAnswer {
	t.mu.Lock()
	defer t.mu.Unlock()
	answer := ReleaseAnswer{
		Running: a.Answer == handover.AnswerRunning, Lost: a.Answer == handover.AnswerLost, Reason: a.Why, Resumed: t.resumed,
	}
	t.final = &answer
	return answer
}

// Discard drops this side for good, if that can still be, and returns the final word: discarded, running or lost.
func (t *Target) Discard(ctx context.Context, why string) (handover.Answer, error) {
	a, err := t.ask(ctx, handover.TargetEvent{Kind: handover.TargetDiscard, Why: why})
	if err != nil {
		return "", err
	}
	if a.Answer == handover.AnswerReturned { // to a release that came at the same time; it says the same
		return handover.AnswerDiscarded, nil
	}
	return a.Answer, nil
}

// AuthorityShort says that this host's authority is over: a VM that has not run here yet is given up. It does not wait; one that finds no room may
// be said again.
func (t *Target) AuthorityShort() {
	select {
	case t.inbox <- targetEvent{TargetEvent: handover.TargetEvent{Kind: handover.TargetAuthorityShort, Authority: t.Authority(), Why: "it was not renewed"}}:
	default:
	}
}

// ask posts the event and waits for the machine's next answer.
func (t *Target) ask(ctx context.Context, e handover.TargetEvent) (handover.TargetAction, error) {
	answered := make(chan handover.TargetAction, 1)
	select {
	case t.inbox <- targetEvent{TargetEvent: e, answered: answered}:
	case <-t.ended:
		return handover.TargetAction{}, fault.New(fault.Conflict, "migration %s is over here", t.Migration)
	case <-ctx.Done():
		return handover.TargetAction{}, ctx.Err()
	}
	select {
	case a := <-answered:
		return a, nil
	case <-t.ended:
		select {
		case a := <-answered:
			return a, nil
		default:
		}
		return handover.TargetAction{}, fault.New(fault.Unavailable, "migration %s: the agent stops: ask again", t.Migration)
	case <-ctx.Done():
		return handover.TargetAction{}, ctx.Err()
	}
}
