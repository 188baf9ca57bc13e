package packets

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The flags of migrations. The memory's stream has a limit, as it has on a real link: the processors copy no faster than they also can
// emulate the guest. At a switchover that is to be struck there must be so much left to send that the blow comes long before its end.
var (
	plain          = []string{"--bandwidth", "64M"}
	slowCopy       = []string{"--bandwidth", "16M"}
	longSwitchover = []string{"--bandwidth", "32M", "--downtime-max", "2s"}
)

// aimAt is how much was sent when a blow is prepared: more than any call between agents carries.
const aimAt = 2 << 20

// blow is something that ends a migration before its release, and the phase in which it falls.
type blow struct {
	kind    string
	at      inventory.Phase
	prepare func(c *course, source, target *lab.Host, id string) (strike func() error, err error)
}

var blows = []blow{
	{"canceled in pre-copy", inventory.PreCopy, cancel},
	{"target's qemu killed at the switchover", inventory.Switchover, killQEMU},
	{"stream cut at the switchover", inventory.Switchover, cutStream},
	{"stream cut in pre-copy", inventory.PreCopy, cutStream},
	{"target's agent killed at the switchover", inventory.Switchover, killAgent},
	{"canceled at the switchover", inventory.Switchover, cancel},
	{"target's qemu killed in pre-copy", inventory.PreCopy, killQEMU},
}

func cancel(_ *course, source, _ *lab.Host, id string) (func() error, error) {
	return func() error {
		ctx, done := context.WithTimeout(context.Background(), stepMax)
		defer done()
		_, err := source.Godwit(ctx, "migration", "cancel", id)
		return err
	}, nil
}

func killQEMU(c *course, _, target *lab.Host, _ string) (func() error, error) {
	pids := target.QEMUs(c.vm)
	if len(pids) != 1 {
		return nil, fmt.Errorf("%s has QEMU processes %v, not one", target.Name, pids)
	}
	return func() error { return syscall.Kill(pids[0], syscall.SIGKILL) }, nil
}

func killAgent(c *course, _, target *lab.Host, _ string) (func() error, error) {
	pid, err := target.PID(step(c.t), "agent")
	return func() error { return syscall.Kill(pid, syscall.SIGKILL) }, err
}

func cutStream(c *course, _, target *lab.Host, _ string) (func() error, error) {
	pid, err := target.PID(step(c.t), "agent")
	if err != nil {
		return nil, err
	}
	wire, err := lab.MemoryStream(pid)
	if err != nil {
		return nil, err
	}
	return wire.Cut, nil
}

// fly does the migrations, the aborted ones evenly between those that complete.
func (c *course) fly(migrations, aborts int) {
	here, there := c.cluster.Hosts[0], c.cluster.Hosts[1]
	began, sent, sentBy := time.Now(), c.sent(), c.sentByGuest()
	for i, struck := 0, 0; i < migrations || struck < aborts; {
		if struck*max(migrations, 1) <= i*aborts && struck < aborts {
			if c.abort(here, there, blows[struck%len(blows)]) {
				struck++
				continue
			}
			if c.result.Misses++; c.result.Misses > missesMax {
				c.t.Fatalf("%d blows came too late", c.result.Misses)
			}
			here, there = there, here
			continue
		}
		c.move(here, there)
		here, there = there, here
		i++
	}
	c.result.Seconds = round(time.Since(began))
	c.result.ToGuest.PerSec = float64(c.sent()-sent) / c.result.Seconds
	c.result.FromGuest.PerSec = float64(c.sentByGuest()-sentBy) / c.result.Seconds
}

func round(d time.Duration) float64 { return float64(d.Round(time.Millisecond)) / float64(time.Second) }

func (c *course) sent() uint64 {
	sent, _, err := c.station.counts()
	if err != nil {
		c.t.Fatal(err)
	}
	return sent
}

func (c *course) sentByGuest() uint64 {
	p, err := c.guest.Packets(step(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	return p.Sent
}

// move migrates the guest and demands that it arrives.
func (c *course) move(from, to *lab.Host) {
	c.t.Helper()
	began := time.Now()
	id := c.migrate(from, to, plain...)
	m := c.end(from, id)
	e := c.note(event{From: from.Name, To: to.Name, Ended: m.GetStatus().GetPhase(), Seconds: round(time.Since(began))}, m, from)
	if e.Ended != inventory.Completed.String() {
		c.t.Fatalf("a migration from %s to %s ended as %s: %s", from.Name, to.Name, e.Ended, m.GetStatus().GetReason())
	}
	c.result.Migrations = append(c.result.Migrations, e)
}

// missesMax is how many blows may come too late: a cancel is a process that has to start while the switchover lasts, which may take 20 ms.
const missesMax = 10

// abort begins a migration and strikes it. The guest stays, or the blow came when the migration was past it: then the guest has moved, and nothing may
// have been lost either.
func (c *course) abort(from, to *lab.Host, b blow) (struck bool) {
	t := c.t
	t.Helper()
	flags := slowCopy
	if b.at != inventory.PreCopy {
		flags = longSwitchover
	}
	began := time.Now()
	id := c.migrate(from, to, flags...)
	var strike func() error
	var blown error
	err := from.WatchMigration(step(t), id, func(m *godwitv1.Migration) bool {
		status := m.GetStatus()
		if strike == nil && status.GetPhase() == inventory.PreCopy.String() && status.GetProgress().GetSent() > aimAt {
			var err error
			if strike, err = b.prepare(c, from, to, id); err != nil {
				t.Fatal(err)
			}
		}
		if strike == nil || status.GetPhase() != b.at.String() {
			return false
		}
		blown, struck = strike(), true
		return true
	})
	if !struck {
		t.Fatalf("%s: the migration was never seen there: %v", b.kind, err)
	}
	m := c.end(from, id)
	missed := m.GetStatus().GetPhase() == inventory.Completed.String()
	if blown != nil && !missed {
		t.Error(blown)
	}
	for _, h := range c.cluster.Hosts {
		if err := h.WaitUp(step(t)); err != nil {
			t.Fatal(err)
		}
	}
	e, empty := event{Kind: b.kind, From: from.Name, To: to.Name, Ended: m.GetStatus().GetPhase(), Seconds: round(time.Since(began))}, to
	if missed {
		empty = from
	}
	e = c.note(e, m, empty)
	if missed {
		return false
	}
	if e.Ended != inventory.Failed.String() && e.Ended != inventory.Canceled.String() {
		t.Fatalf("%s: the migration ended as %s", b.kind, e.Ended)
	}
	c.result.Aborts = append(c.result.Aborts, e)
	return true
}

// migrate begins a migration and returns its id.
func (c *course) migrate(from, to *lab.Host, flags ...string) string {
	c.t.Helper()
	m := &godwitv1.Migration{}
	if err := from.Read(step(c.t), m, append([]string{"vm", "migrate", vmName, "--to", to.Name, "--detach"}, flags...)...); err != nil {
		c.t.Fatal(err)
	}
	return m.GetId()
}

// end waits for a migration's end.
func (c *course) end(h *lab.Host, id string) *godwitv1.Migration {
	c.t.Helper()
	m := &godwitv1.Migration{}
	if err := lab.Until(c.t.Context(), stepMax, func() error {
		if err := h.Read(c.t.Context(), m, "migration", "show", id); err != nil {
			return err
		}
		switch phase := m.GetStatus().GetPhase(); phase {
		case inventory.Completed.String(), inventory.Failed.String(), inventory.Canceled.String():
			return nil
		default:
			return fmt.Errorf("migration %s does not end: it is %s (%s)", id, phase, m.GetStatus().GetReason())
		}
	}); err != nil {
		c.t.Fatal(err)
	}
	return m
}

// note waits until nothing of the guest is left at a host, and says what had been lost by then.
func (c *course) note(e event, m *godwitv1.Migration, empty *lab.Host) event {
	c.t.Helper()
	if err := lab.Until(c.t.Context(), quietMax, func() error {
		if left := empty.Leftovers(c.t.Context(), c.vm); len(left) > 0 {
			return fmt.Errorf("left behind: %q", left)
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	e.PauseMS = float64(m.GetStatus().GetResult().GetStopToResume().AsDuration().Microseconds()) / 1000
	p, err := c.guest.Packets(step(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	_, tally, err := c.station.counts()
	if err != nil {
		c.t.Fatal(err)
	}
	e.Lost = []uint64{p.Missing, tally.Missing}
	c.t.Logf("%s %s to %s: %s in %.1f s, pause %.0f ms; so far to the guest %d missing, %d twice, %d late, from it %d, %d, %d; drops %v",
		e.Kind, e.From, e.To, e.Ended, e.Seconds, e.PauseMS, p.Missing, p.Doubled, p.Late, tally.Missing, tally.Doubled, tally.Late, c.drops())
	return e
}

// land ends both senders, waits for the last packets, and counts.
func (c *course) land() {
	t := c.t
	c.station.setRate(0)
	p, err := c.guest.StopPackets(step(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := c.sent()
	// What is lost never comes: the wait is for the last numbers, or for its bound.
	_ = lab.Until(t.Context(), quietMax, func() error {
		if p, err = c.guest.Packets(step(t)); err != nil {
			return err
		}
		if _, tally, _ := c.station.counts(); p.Next < sent || tally.Next < p.Sent {
			return errors.New("packets are on their way")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &c.result
	perSec := [2]float64{r.ToGuest.PerSec, r.FromGuest.PerSec}
	_, tally, err := c.station.counts()
	if err != nil {
		t.Error(err)
	}
	r.FromGuest = wayOf(p.Sent, tally)
	r.ToGuest = wayOf(sent, tallyOf(p))
	r.ToGuest.PerSec, r.FromGuest.PerSec = perSec[0], perSec[1]
	r.Drops = c.drops()
	for place, n := range map[string]uint64{"guest: socket": p.SocketDrops, "guest: card": p.CardDrops} {
		if n > 0 {
			r.Drops[place] = n
		}
	}
	c.station.mu.Lock()
	r.Stalls = stalls{Station: c.station.behind.Milliseconds(), Guest: p.LoopMS}
	c.station.mu.Unlock()
}

// drops collects what the switches have dropped, by place.
func (c *course) drops() map[string]uint64 {
	found := map[string]uint64{}
	add := func(n uint64, format string, args ...any) {
		if n > 0 {
			found[fmt.Sprintf(format, args...)] = n
		}
	}
	for _, h := range c.cluster.Hosts {
		s, err := h.Switch(step(c.t))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, n := range s.Networks {
			add(n.DropsIn, "%s: ports, from guests", h.Name)
			add(n.DropsOut, "%s: ports, to guests", h.Name)
		}
		for _, p := range s.Ports {
			add(p.Stats.DropsOut, "%s: port %s, to it", h.Name, p.ID)
			add(p.Stats.DropsIn, "%s: port %s, from it", h.Name, p.ID)
		}
		for _, p := range s.Peers {
			add(p.DropsIn, "%s: trunk from %s", h.Name, p.ID)
			add(p.DropsOut, "%s: trunk to %s", h.Name, p.ID)
		}
	}
	return found
}
