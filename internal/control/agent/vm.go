package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// vmCallsMax bounds the requests that wait for one VM's loop.
const vmCallsMax = 16

// houseEvery is the pause before a status that the store did not take is written again.
const houseEvery = time.Second

// vm is one VM on this host. Its loop owns it: whatever changes the VM runs there, one after the other. Others send calls and
// read snapshots.
type vm struct {
	agent *Agent
	id    inventory.VMID
	log   *slog.Logger
	calls chan func(context.Context)
	moved chan migrate.Outcome // the end of a migration, either way
	over  chan struct{}        // closed when the loop has ended

	vcpus vcpus // let run, and stopped for want of authority

	// The loop's own.
	gone    bool // moved away or destroyed: the loop ends
	events  *qmp.Events
	sockets context.CancelFunc // ends console and pulse
	stale   bool               // the store has not taken the last status
	button  bool               // asked off through its guest agent, and its power button not pressed yet
	revival *revival           // it is to be started, because it was lost with a host
	uses    []*use             // what keeps the VM as it is for a while
	let     map[string]bool    // devices that the guest let go of and that the spec still has

	mu      sync.Mutex
	stored  inventory.VM
	changed chan struct{} // closed and replaced when the status changes
	process *qemu.Process
	console *console
	pulse   *pulse
	guest   *guestAgent     // nil for a VM without a port for one
	source  *migrate.Source // while it migrates away
	target  *migrate.Target // while it arrives

	addresses map[string][]netip.Addr // by MAC, as the source knew them; of a VM that arrived
}

func newVM(a *Agent, stored inventory.VM) *vm {
	return &vm{
		agent: a, id: stored.ID, log: a.Log.With(slog.String("vm", string(stored.ID))), stored: stored,
		calls: make(chan func(context.Context), vmCallsMax), moved: make(chan migrate.Outcome, 1), over: make(chan struct{}),
		changed: make(chan struct{}), sockets: func() {}, let: map[string]bool{}, addresses: map[string][]netip.Addr{},
	}
}

// loop owns the VM until it is gone from this host or ctx ends; then QEMU goes on without the agent.
func (v *vm) loop(ctx context.Context) {
	defer close(v.over)
	if v.process != nil {
		v.attach(ctx)
	}
	v.writeStatus(ctx)
	var house <-chan time.Time // no ticker: a host with a hundred VMs that are well wakes for none of them
	for !v.gone {
		var ended <-chan struct{}
		if v.process != nil && v.source == nil && v.target == nil {
			ended = v.process.Done()
		}
		var events <-chan qmp.Event
		if v.events != nil {
			events = v.events.C
		}
		var revive <-chan time.Time
		if v.revival != nil {
			revive = v.revival.due
		}
		if (v.stale || len(v.let) > 0) && house == nil {
			house = time.After(houseEvery)
		}
		select {
		case <-ctx.Done():
			v.leave()
			return
		case call := <-v.calls:
			call(ctx)
		case outcome := <-v.moved:
			v.afterMigration(ctx, outcome)
		case <-ended:
			v.afterExit(ctx)
		case e, more := <-events:
			if !more {
				v.events = nil // the monitor was lost: Done tells whether QEMU was too
				continue
			}
			v.heard(ctx, e)
		case <-revive:
			v.revive(ctx)
		case <-house:
			house = nil
			if v.stale {
				v.writeStatus(ctx)
			}
			v.dropDevices(ctx)
		}
	}
	v.detach()
	v.left(ctx)
}

// do runs f in the loop and returns its error.
func (v *vm) do(ctx context.Context, f func(context.Context) error) error {
	result := make(chan error, 1)
	call := func(loop context.Context) {
		// The caller's deadline counts, and so does the end of the agent.
		within, cancel := context.WithCancel(ctx)
		defer cancel()
		stop := context.AfterFunc(loop, cancel)
		defer stop()
		result <- f(within)
	}
	left := fault.New(fault.Conflict, "vm %s left this host: try again", v.id)
	select {
	case v.calls <- call:
	case <-v.over:
		return left
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-result:
		return err
	case <-v.over:
		select {
		case err := <-result:
			return err
		default: // it was not begun
		}
		if v.gone {
			return left
		}
		return fault.New(fault.Unavailable, "the agent of %s stops: try again", v.agent.Host())
	}
}

// snapshot returns the status with what is only in memory.
func (v *vm) snapshot() inventory.VMStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.stored.Status
	if v.process != nil {
		s.PID = v.process.PID()
		if usage, err := v.process.Usage(); err == nil {
			s.Usage = usage
		}
	}
	if v.pulse != nil {
		s.Heartbeat = v.pulse.read()
	}
	if v.guest != nil {
		s.Guest = v.guest.read()
	}
	return s
}

// record returns the VM as this host knows it.
func (v *vm) record() inventory.VM {
	v.mu.Lock()
	defer v.mu.Unlock()
	vm := v.stored
	return vm
}

// state changes the state, tells whoever waits, and writes it down. Only the loop calls it.
func (v *vm) state(ctx context.Context, state inventory.VMState, detail string) {
	v.mu.Lock()
	old := v.stored.Status.State
	v.stored.Status = inventory.VMStatus{State: state, Host: v.agent.Host(), Since: time.Now(), Detail: detail}
	if v.process != nil {
		v.stored.Status.PID = v.process.PID()
	}
	close(v.changed)
	v.changed = make(chan struct{})
	v.mu.Unlock()
	if old != state {
		v.log.LogAttrs(ctx, slog.LevelInfo, "vm", slog.String("from", old.String()), slog.String("to", state.String()), slog.String("why", detail))
		v.noteState(ctx, old, state, detail)
	}
	v.writeStatus(ctx)
}

// writeStatus stores the status; a store that is away gets it later. While the VM arrives its status is the source's to write.
func (v *vm) writeStatus(ctx context.Context) {
	if v.target != nil {
		return
	}
	v.mu.Lock()
	status := v.stored.Status
	if v.pulse != nil {
		status.Heartbeat = v.pulse.read()
	}
	v.mu.Unlock()
	within, done := context.WithTimeout(ctx, storeTimeout)
	defer done()
	err := v.agent.writer.PutVMStatus(within, v.id, status)
	if err != nil && ctx.Err() == nil && !v.stale {
		v.log.LogAttrs(ctx, slog.LevelWarn, "status not stored, will be again", slog.Any("err", err))
	}
	v.stale = err != nil
}

// storeTimeout bounds one call to the store from a loop.
const storeTimeout = 3 * time.Second

// attach begins to listen to a QEMU: its events, serial port and heartbeats.
func (v *vm) attach(ctx context.Context) {
	v.events = v.process.QMP().Subscribe(qmp.EventShutdown, qmp.EventStop, qmp.EventResume, qmp.EventGuestPanicked, qmp.EventBlockIOError, qmp.EventDeviceDeleted)
	if v.console != nil {
		return
	}
	dir := v.process.Dir()
	c, p := newConsole(dir.Serial()), &pulse{path: dir.Heartbeat()}
	var g *guestAgent
	within, cancel := context.WithCancel(context.WithoutCancel(ctx)) // until detach, whoever asked for the start
	var all sync.WaitGroup
	all.Go(func() { c.run(within) })
	all.Go(func() { p.run(within) })
	if v.stored.Spec.Layout >= inventory.LayoutPorts {
		g = newGuestAgent(dir.Agent(), agentPorts(v.process.QMP()), v.log)
		all.Go(func() { g.run(within) })
	}
	v.sockets = func() { cancel(); all.Wait() }
	v.mu.Lock()
	v.console, v.pulse, v.guest = c, p, g
	v.mu.Unlock()
}

// detach lets go of everything that attach took.
func (v *vm) detach() {
	if v.events != nil {
		v.events.Close()
		v.events = nil
	}
	v.sockets()
	v.sockets = func() {}
	v.mu.Lock()
	v.console, v.pulse, v.guest, v.process = nil, nil, nil, nil
	v.mu.Unlock()
}

// leave lets QEMU go on without this agent.
func (v *vm) leave() {
	p := v.process
	if v.source != nil || v.target != nil {
		<-v.moved // its engine ends with the same context
		if p == nil && v.target != nil {
			p = v.target.Process()
		}
	}
	v.detach()
	if p != nil {
		p.Release()
	}
}

// heard takes note of what QEMU says of itself.
func (v *vm) heard(ctx context.Context, e qmp.Event) {
	if v.source != nil || v.target != nil {
		return // a migration stops and resumes vCPUs on its own
	}
	switch e.Name {
	case qmp.EventShutdown:
		if cause := e.Cause(); cause.Guest {
			v.powerOff(ctx, "the guest shut down")
		}
	case qmp.EventGuestPanicked:
		v.state(ctx, inventory.Crashed, "the guest panicked: godwit vm reset starts it again")
	case qmp.EventBlockIOError:
		v.state(ctx, inventory.Paused, "a disk failed (godwit vm resume tries again): is the datastore full or away?")
	case qmp.EventDeviceDeleted:
		if device := e.Device(); device != "" {
			v.let[device] = true
			v.dropDevices(ctx)
		}
	case qmp.EventStop:
		if v.stored.Status.State == inventory.Running {
			detail := ""
			if v.wasHalted() {
				detail = haltedDetail
			}
			v.state(ctx, inventory.Paused, detail)
		}
	case qmp.EventResume:
		if v.stored.Status.State != inventory.Running {
			v.state(ctx, inventory.Running, "")
		}
	}
}

// powerOff ends QEMU after the guest has shut itself down, and remembers that it is wanted off.
func (v *vm) powerOff(ctx context.Context, why string) {
	if err := v.want(ctx, inventory.PowerOff); err != nil {
		v.log.LogAttrs(ctx, slog.LevelWarn, "wanted power not stored", slog.Any("err", err))
	}
	if err := v.end(ctx, false); err != nil {
		v.log.LogAttrs(ctx, slog.LevelError, "qemu does not end", slog.Any("err", err))
		return
	}
	v.state(ctx, inventory.Stopped, why)
}

// afterExit cleans up behind a QEMU that ended without being asked to.
func (v *vm) afterExit(ctx context.Context) {
	exit := v.process.Exit()
	v.cleanUp(ctx)
	if v.agent.Authority.lately() && v.stored.Run.Wanted == inventory.PowerOn && v.agent.arbiterOf(v.stored.Spec) == authority.LeaseArbitrates {
		v.revival = newRevival("its host had lost its authority, and it did not stop", 0)
		v.state(ctx, inventory.Crashed, v.revival.why)
		return
	}
	v.state(ctx, inventory.Crashed, exit.String()+": godwit vm start starts it again")
}

// cleanUp removes what a QEMU that has ended leaves: run directory, cgroup and switch ports.
func (v *vm) cleanUp(ctx context.Context) {
	p := v.process
	v.detach()
	if p != nil {
		if err := p.Cleanup(); err != nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "clean-up is incomplete", slog.Any("err", err))
		}
	}
	v.left(ctx)
	v.removePorts(ctx)
}

// vmOfPort returns whose port it is, from the id that ports gave it, "" for one that is no VM's.
func vmOfPort(port string) inventory.VMID {
	i := strings.LastIndexByte(port, '-')
	if i < 0 || !strings.HasPrefix(port, "vm-") { // as inventory.NewVMID has it
		return ""
	}
	return inventory.VMID(port[:i])
}

// runDir is where the VM's QEMU has its sockets.
func (v *vm) runDir() qemu.RunDir { return v.agent.runDirOf(v.id) }

func (a *Agent) runDirOf(id inventory.VMID) qemu.RunDir { return runDirIn(a.RunDir, id) }

// runDirIn is where a VM has its run directory below that of its host.
func runDirIn(host string, id inventory.VMID) qemu.RunDir {
	return qemu.RunDir(filepath.Join(host, "vms", string(id)))
}
