package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qga"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The pace of questions to a guest agent. A guest that has just begun gets its addresses soon; one that has run for a while changes
// little. A guest without an agent, or whose agent does not answer, costs next to nothing: nobody asks while its port is closed.
const (
	askFirst  = time.Second
	askEvery  = 15 * time.Second
	askAllNth = 20 // every so many questions, also for what hardly ever changes
	askAgain  = 2 * time.Second
	askMax    = 2 * time.Minute // between two tries to reach an agent whose port is open and that stays silent
)

// frozenMax is how long a guest's file systems may be frozen before the guard thaws them, whatever becomes of who asked for it.
const frozenMax = 30 * time.Second

// guestAgent is the line to qemu-guest-agent in one guest. Its run keeps the connection and asks; others read what it knows, ask for a
// shutdown, and freeze and thaw.
//
// A guest that is found frozen without a freeze of ours is thawed: whoever froze it, an agent that was killed or the host
// that it came from, cannot do it any more.
type guestAgent struct {
	path  string
	ports portWatch
	log   *slog.Logger
	wake  chan struct{} // holds one: something below has changed

	mu      sync.Mutex
	client  *qga.Client // nil while no agent answers
	last    inventory.Guest
	frozen  time.Time // when the guard thaws; zero: no freeze of ours stands
	suspect bool      // it may be frozen without a freeze of ours
}

// portWatch tells whether the guest has opened the agent's port, now and whenever that changes, until ctx ends. The channel is
// closed when nothing more can be told.
type portWatch func(ctx context.Context) (open bool, changes <-chan bool, err error)

func newGuestAgent(path string, ports portWatch, log *slog.Logger) *guestAgent {
	return &guestAgent{path: path, ports: ports, log: log, wake: make(chan struct{}, 1)}
}

// agentPorts is portWatch by QEMU's word (QAPI, VSERPORT_CHANGE and query-chardev).
func agentPorts(monitor *qmp.Conn) portWatch {
	return func(ctx context.Context) (bool, <-chan bool, error) {
		events := monitor.Subscribe(qmp.EventPortChange)
		devices, err := monitor.CharDevices(ctx)
		if err != nil {
			events.Close()
			return false, nil, err
		}
		open := false
		for _, d := range devices {
			open = open || d.ID == qemu.AgentChardev && d.Open
		}
		changes := make(chan bool)
		go func() { // ends with ctx or the monitor
			defer close(changes)
			defer events.Close()
			for {
				select {
				case <-ctx.Done():
					return
				case e, more := <-events.C:
					var change struct {
						ID   string `json:"id"`
						Open bool   `json:"open"`
					}
					if !more {
						return
					}
					if e.Decode(&change) != nil || change.ID != qemu.AgentDevice {
						continue
					}
					select {
					case changes <- change.Open:
					case <-ctx.Done():
						return
					}
				}
			}
		}()
		return open, changes, nil
	}
}

// run keeps the line until ctx ends or QEMU is gone. A freeze of ours does not outlive it.
func (g *guestAgent) run(ctx context.Context) {
	open, changes, err := g.ports(ctx)
	if err != nil {
		if ctx.Err() == nil {
			g.log.LogAttrs(ctx, slog.LevelWarn, "guest agent not looked for", slog.Any("err", err))
		}
		return
	}
	silent := 0
	for ctx.Err() == nil {
		var again <-chan time.Time
		if open {
			var answered bool
			if answered, open = g.session(ctx, changes); answered {
				silent = 0
			}
			if open { // it is there and does not answer, or says what makes no sense
				again = time.After(min(askAgain<<min(silent, 10), askMax))
				silent++
			}
		}
		if !open {
			g.forget()
			silent = 0
		}
		select {
		case <-ctx.Done():
		case now, more := <-changes:
			if !more {
				return
			}
			open = now
		case <-again:
		}
	}
}

// session speaks with the agent until the connection or the port is closed, or ctx ends. It returns whether the agent ever answered, and whether
// the port is open still.
func (g *guestAgent) session(ctx context.Context, changes <-chan bool) (answered, open bool) {
	within, done := context.WithTimeout(ctx, qga.CallMax)
	client, err := qga.Dial(within, g.path)
	done()
	if err != nil {
		return false, true
	}
	g.mu.Lock()
	g.client, g.suspect = client, true
	g.mu.Unlock()
	defer func() {
		g.thawAtEnd(ctx, client)
		g.mu.Lock()
		g.client, g.last.Agent = nil, false
		g.mu.Unlock()
		client.Close()
	}()
	pause, questions := askFirst, 0
	for {
		calm := g.guard(ctx, client)
		if !calm {
			pause = askFirst
		} else if err := g.ask(ctx, client, questions%askAllNth == 0); qga.Lost(err) {
			return true, true
		} else if questions++; questions > 1 {
			pause = min(2*pause, askEvery)
		}
		next := time.NewTimer(g.untilGuard(pause))
		select {
		case <-ctx.Done():
			next.Stop()
			return true, true
		case open, more := <-changes:
			next.Stop()
			if !open || !more {
				return true, false
			}
		case <-g.wake:
			next.Stop()
		case <-next.C:
		}
	}
}

// guard thaws a guest that must not be frozen any more, and reports whether questions can be put to it: a frozen agent answers none.
func (g *guestAgent) guard(ctx context.Context, client *qga.Client) (calm bool) {
	g.mu.Lock()
	if !g.frozen.IsZero() && time.Now().Before(g.frozen) {
		g.mu.Unlock()
		return false
	}
	if !g.frozen.IsZero() {
		g.frozen, g.suspect = time.Time{}, true
		g.log.LogAttrs(ctx, slog.LevelWarn, "guest was frozen for too long", slog.Duration("most", frozenMax))
	}
	suspect := g.suspect
	g.mu.Unlock()
	if !suspect {
		return true
	}
	frozen, err := client.Frozen(ctx)
	if err == nil && frozen {
		_, err = client.Thaw(ctx)
		g.log.LogAttrs(ctx, slog.LevelWarn, "guest was found frozen", slog.Any("err", err))
	}
	// An agent that cannot freeze cannot be frozen.
	if err != nil && !fault.Is(err, fault.Incompatible) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.suspect = false
	return true
}

// thawAtEnd ends a freeze of ours when nobody will guard it any more.
func (g *guestAgent) thawAtEnd(ctx context.Context, client *qga.Client) {
	g.mu.Lock()
	ours := !g.frozen.IsZero()
	g.frozen = time.Time{}
	g.mu.Unlock()
	if !ours {
		return
	}
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), qga.CallMax)
	defer done()
	if _, err := client.Thaw(undo); err != nil {
		g.log.LogAttrs(ctx, slog.LevelWarn, "guest not thawed, whoever meets it next will", slog.Any("err", err))
	}
}

// untilGuard shortens a pause to the end of a freeze.
func (g *guestAgent) untilGuard(pause time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.frozen.IsZero() {
		return pause
	}
	return max(time.Until(g.frozen), 0)
}

// ask puts the questions and keeps the answers. A question that this agent cannot answer is no error.
func (g *guestAgent) ask(ctx context.Context, client *qga.Client, all bool) error {
	g.mu.Lock()
	next := g.last
	g.mu.Unlock()
	nics, err := client.NICs(ctx)
	if err == nil {
		next.NICs = make([]inventory.GuestNIC, 0, len(nics))
		for _, n := range nics {
			known := inventory.GuestNIC{Name: n.Name, MAC: n.MAC}
			for _, a := range n.Addresses {
				known.Addresses = append(known.Addresses, a.String())
			}
			next.NICs = append(next.NICs, known)
		}
	}
	if all || next.Version == "" {
		for _, q := range []struct {
			put  func(context.Context) (string, error)
			keep *string
		}{{client.Version, &next.Version}, {client.Hostname, &next.Hostname}, {client.System, &next.System}} {
			if !answers(err) {
				break
			}
			var text string
			if text, err = q.put(ctx); err == nil {
				*q.keep = text
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if answers(err) {
		next.Agent, next.Seen = true, time.Now()
		g.last = next
	} else {
		g.last.Agent = false
	}
	return err
}

// answers reports whether an error is the agent's own word: then it is there.
func answers(err error) bool {
	return err == nil || fault.Is(err, fault.Incompatible) || fault.Is(err, fault.Conflict)
}

// forget drops what was known of a guest whose agent has gone.
func (g *guestAgent) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.frozen, g.suspect = inventory.Guest{}, time.Time{}, false
}

// read returns what the guest said of itself.
func (g *guestAgent) read() inventory.Guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// reach returns the connection to an agent that answers.
func (g *guestAgent) reach() (*qga.Client, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.client == nil || !g.last.Agent && g.frozen.IsZero() {
		return nil, fault.New(fault.Conflict, "no guest agent answers: install qemu-guest-agent in the guest")
	}
	return g.client, nil
}

// shutdown asks the guest to power itself off. An error says that it was not asked, or refused.
func (g *guestAgent) shutdown(ctx context.Context) error {
	client, err := g.reach()
	if err != nil {
		return err
	}
	return client.Shutdown(ctx)
}

// freeze freezes the guest's file systems, for frozenMax at most, and returns how many.
func (g *guestAgent) freeze(ctx context.Context) (int, error) {
	client, err := g.reach()
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	if !g.frozen.IsZero() {
		g.mu.Unlock()
		return 0, fault.New(fault.Conflict, "its file systems are frozen already")
	}
	g.frozen = time.Now().Add(qga.FreezeMax + frozenMax) // before the deed: the guard has to know
	g.mu.Unlock()
	n, err := client.Freeze(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.frozen, g.suspect = time.Time{}, true
	} else {
		g.frozen = time.Now().Add(frozenMax)
	}
	g.nudge()
	return n, err
}

// thaw ends freeze. fault.Conflict says that the freeze had not lasted until then, so that what was done meanwhile does not count.
func (g *guestAgent) thaw(ctx context.Context) error {
	gone := fault.New(fault.Conflict, "its file systems were not frozen any more: nothing may take longer than %v", frozenMax)
	g.mu.Lock()
	client, ours := g.client, !g.frozen.IsZero()
	g.mu.Unlock()
	if client == nil || !ours {
		return gone
	}
	n, err := client.Thaw(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	stood := !g.frozen.IsZero()
	g.frozen, g.suspect = time.Time{}, err != nil
	g.nudge()
	if err == nil && (n == 0 || !stood) {
		return gone
	}
	return err
}

// nudge makes the session look at once.
func (g *guestAgent) nudge() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Freeze flushes and freezes the file systems of a VM's guest through its agent, for frozenMax at most, and returns how many there were. It
// is for snapshots; Thaw must follow. Errors: fault.Conflict when no guest agent answers or a freeze stands.
func (a *Agent) Freeze(ctx context.Context, id inventory.VMID) (int, error) {
	v, err := a.own(id)
	if err != nil {
		return 0, err
	}
	g, err := v.guestLine()
	if err != nil {
		return 0, err
	}
	n, err := g.freeze(ctx)
	return n, fault.Wrap("freeze", "vm "+v.record().Spec.Name, err)
}

// Thaw ends Freeze. fault.Conflict says that the freeze did not last until then: what was made meanwhile is not consistent.
func (a *Agent) Thaw(ctx context.Context, id inventory.VMID) error {
	v, err := a.own(id)
	if err != nil {
		return err
	}
	g, err := v.guestLine()
	if err != nil {
		return err
	}
	return fault.Wrap("thaw", "vm "+v.record().Spec.Name, g.thaw(ctx))
}

// guestLine returns the line to the guest's agent.
func (v *vm) guestLine() (*guestAgent, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.guest == nil {
		return nil, fault.New(fault.Conflict, "vm %s has no guest agent: it is %v", v.stored.Spec.Name, v.stored.Status.State)
	}
	return v.guest, nil
}

// askOff asks the guest to power itself off: through its agent, which ends it in order whatever its power button is set to do, else by that.
func (v *vm) askOff(ctx context.Context) error {
	if g, err := v.guestLine(); err == nil {
		if err = g.shutdown(ctx); err == nil {
			v.button = true
			return nil
		}
		v.log.LogAttrs(ctx, slog.LevelDebug, "not asked off through the guest agent", slog.Any("err", err))
	}
	v.button = false
	return v.process.QMP().Powerdown(ctx)
}

// buttonAfter is how much of the grace a guest has whose agent said yes, before its power button is pressed as well.
func buttonAfter(grace time.Duration) time.Duration { return min(grace/2, 15*time.Second) }

// pressButton presses the power button of a VM that still runs and was asked through its guest agent only: one whose button was
// pressed already might take a second time for something else.
func (v *vm) pressButton(ctx context.Context) error {
	return v.do(ctx, func(ctx context.Context) error {
		if !v.button || v.stored.Status.State != inventory.Running || v.source != nil || v.process == nil {
			return nil
		}
		v.button = false
		return v.process.QMP().Powerdown(ctx)
	})
}
