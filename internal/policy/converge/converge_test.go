package converge

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// guest is a plain model of a migration: a link, a guest that writes over a working set at a rate, and a QEMU that ends the copying
// as the package comment says. It yields what query-migrate would.
type guest struct {
	send, dirty float64 // bytes a second
	set         float64 // working set in bytes
	downtime    time.Duration
	at, passAt  time.Duration
	remaining   float64
	sent        float64
	passes      int
	stopped     bool
}

func (g *guest) sample() Sample {
	s := Sample{
		At: g.at, Total: 512 * inventory.MiB, Remaining: inventory.Bytes(g.remaining), Transferred: inventory.Bytes(g.sent), Passes: g.passes,
	}
	if g.passes > 1 {
		s.DirtyPages = int64(g.dirty / float64(PageSize))
	}
	return s
}

// step lets the time pass. QEMU sends in portions of 10 ms and looks whether it is near enough after each.
func (g *guest) step() {
	const portion = 10 * time.Millisecond
	if g.stopped {
		return
	}
	g.at += portion
	g.sent += min(g.remaining, g.send*portion.Seconds())
	g.remaining = max(0, g.remaining-g.send*portion.Seconds())
	threshold := g.send * g.downtime.Seconds()
	if g.remaining >= threshold && g.remaining > 0 {
		return
	}
	g.remaining += min(g.set, g.dirty*(g.at-g.passAt).Seconds())
	g.passAt, g.passes = g.at, g.passes+1
	g.stopped = g.remaining < threshold
}

const mib = float64(inventory.MiB)

func run(g *guest, limit time.Duration) (advices []Advice, held time.Duration, stopped bool) {
	g.passes, g.remaining = 1, 512*mib
	t := New(Config{Downtime: DowntimeLimit(g.downtime)})
	for g.at < limit && !g.stopped {
		var a Advice
		t, a = t.Step(g.sample())
		g.downtime = a.Downtime
		advices = append(advices, a)
		switch a.Port {
		case Hold:
			held = g.at
		case Unhold:
			held = 0
		case Leave:
		}
		g.step()
	}
	return advices, held, g.stopped
}

func TestPortsAreHeldRightBeforeTheStop(t *testing.T) {
	for _, c := range []struct {
		name string
		g    guest
	}{
		{"idle", guest{send: 800 * mib}},
		{"a little busy", guest{send: 800 * mib, dirty: 20 * mib, set: 64 * mib}},
		{"busy", guest{send: 400 * mib, dirty: 100 * mib, set: 128 * mib}},
		{"slow link", guest{send: 64 * mib, dirty: 20 * mib, set: 64 * mib}},
		{"short downtime", guest{send: 400 * mib, dirty: 50 * mib, set: 64 * mib, downtime: 20 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := c.g
			advices, held, stopped := run(&g, time.Minute)
			if !stopped {
				t.Fatal("the model does not converge")
			}
			if held == 0 {
				t.Fatalf("the vCPUs stopped at %v with open ports", g.at)
			}
			if lead := g.at - held; lead > HoldMax {
				t.Errorf("held %v before the stop, more than %v", lead, HoldMax)
			} else {
				t.Logf("stopped at %v in round %d, held %v before", g.at, g.passes, lead)
			}
			last := advices[len(advices)-1].Progress
			if last.ETA < 0 || last.ETA > Lead {
				t.Errorf("ETA right before the end is %v", last.ETA)
			}
		})
	}
}

// The story: the machine is so busy that a sample comes every 150 ms only. The ports are held before the stop all the same.
func TestPortsAreHeldInTimeOnABusyMachine(t *testing.T) {
	for phase := range 15 { // of the samples
		g := guest{send: 100 * mib, dirty: mib, set: 4 * mib, passes: 1, remaining: 64 * mib, downtime: DowntimeMin}
		track := New(Config{Downtime: DowntimeDefault})
		held := false
		for i := 0; !g.stopped; i++ {
			if i%15 == phase {
				var a Advice
				track, a = track.Step(g.sample())
				held = a.Port == Hold || held && a.Port != Unhold
				if g.downtime = DowntimeMin; held { // as the agent gives it
					g.downtime = a.Downtime
				}
			}
			g.step()
		}
		if !held {
			t.Errorf("phase %d: the vCPUs stopped at %v with open ports", phase, g.at)
		}
	}
}

func TestAGuestThatWritesNothingStandsNoLongerThanItsLastPagesNeed(t *testing.T) {
	g := guest{send: 400 * mib}
	run(&g, time.Minute)
	if !g.stopped || g.downtime > 2*DowntimeFirst {
		t.Errorf("stopped %v with a limit of %v, want no more than %v", g.stopped, g.downtime, 2*DowntimeFirst)
	}
}

func TestALongerPauseIsAllowedRoundByRound(t *testing.T) {
	// 60 MiB/s on a link of 100: only some rounds of 60 ms and less are short enough for the limit of 100 ms, none is for the first one.
	g := guest{send: 100 * mib, dirty: 60 * mib, set: 5 * mib}
	advices, _, stopped := run(&g, time.Minute)
	if !stopped {
		t.Fatal("it does not converge")
	}
	last := time.Duration(0)
	for _, a := range advices {
		if a.Downtime < last || a.Downtime > DowntimeDefault {
			t.Fatalf("a limit of %v after %v", a.Downtime, last)
		}
		last = a.Downtime
	}
	if last <= DowntimeFirst {
		t.Errorf("it stopped with a limit of %v", last)
	}
	// The limit of one that asks for less than the first is its own.
	if a := New(Config{Downtime: DowntimeMin}).Downtime(); a != DowntimeMin {
		t.Errorf("begins with %v, want %v", a, DowntimeMin)
	}
	// And one that never converges gets all of what it asked for.
	g = guest{send: 50 * mib, dirty: 80 * mib, set: 256 * mib}
	advices, _, _ = run(&g, 2*time.Minute)
	if got := advices[len(advices)-1].Downtime; got != DowntimeDefault {
		t.Errorf("a limit of %v in the end, want %v", got, DowntimeDefault)
	}
}

func TestETAIsRightForAnIdleGuest(t *testing.T) {
	g := guest{send: 100 * mib}
	advices, _, _ := run(&g, time.Minute)
	end := g.at
	for _, a := range advices {
		p := a.Progress
		if p.Elapsed < rateWindow {
			continue
		}
		if miss := (p.Elapsed + p.ETA - end).Abs(); miss > 50*time.Millisecond {
			t.Fatalf("at %v the end was predicted in %v, and it came %v later", p.Elapsed, p.ETA, end-p.Elapsed)
		}
		if p.SendRate < 99*inventory.BytesPerSecond(mib) || p.SendRate > 101*inventory.BytesPerSecond(mib) {
			t.Fatalf("at %v the send rate is %v, want 100 MiB/s", p.Elapsed, p.SendRate)
		}
	}
}

func TestAGuestThatWritesFasterThanTheLinkHasNoETA(t *testing.T) {
	g := guest{send: 50 * mib, dirty: 80 * mib, set: 256 * mib}
	advices, held, stopped := run(&g, 2*time.Minute)
	if stopped {
		t.Fatal("the model converges")
	}
	last := advices[len(advices)-1].Progress
	if last.ETA != Unknown || last.DirtyRate != inventory.BytesPerSecond(80*mib) || last.Round < 3 {
		t.Errorf("progress %+v, want no ETA, 80 MiB/s dirtied and more than two rounds", last)
	}
	if held != 0 {
		t.Error("the ports are still held though the end is not near")
	}
	var share time.Duration
	var since time.Duration = -1
	for _, a := range advices {
		switch a.Port {
		case Hold:
			since = a.Progress.Elapsed
		case Unhold:
			share += a.Progress.Elapsed - since
			since = -1
		case Leave:
		}
	}
	if share > HoldMax {
		t.Errorf("the ports were held for %v without need", share)
	}
}

// A guest writes the same few pages faster than the link carries them. They fit into the pause that it is allowed, so it ends, though QEMU gets its
// limit only while the ports are held.
func TestAGuestThatWritesFewPagesFastEndsUnderAHold(t *testing.T) {
	for _, set := range []float64{1, 4} { // MiB; 5 fit
		g := guest{send: 50 * mib, dirty: 80 * mib, set: set * mib, downtime: 100 * time.Millisecond}
		track := New(Config{Downtime: g.downtime})
		g.passes, g.remaining = 1, 512*mib
		held := false
		for g.at < time.Minute && !g.stopped {
			var a Advice
			track, a = track.Step(g.sample())
			held = a.Port == Hold || held && a.Port != Unhold
			if g.downtime = DowntimeMin; held {
				g.downtime = a.Downtime
			}
			g.step()
		}
		if !g.stopped || !held {
			t.Errorf("%.0f MiB: stopped %v, held %v after %v", set, g.stopped, held, g.at)
		}
	}
}

func TestZeroPagesDoNotMakeTheEndLookFar(t *testing.T) {
	// 448 of 512 MiB are zero pages: they leave Remaining at once and hardly reach the link.
	track := New(Config{Downtime: DowntimeDefault})
	var a Advice
	for i := range 30 {
		at := time.Duration(i) * 10 * time.Millisecond
		track, a = track.Step(Sample{
			At: at, Total: 512 * inventory.MiB, Remaining: (512 - inventory.Bytes(i)*10) * inventory.MiB,
			Transferred: inventory.Bytes(i) * inventory.MiB, Passes: 1,
		})
	}
	// 1000 MiB/s of 222 MiB that are left; the link's 100 MiB/s would say 2.1 s.
	if eta := a.Progress.ETA; eta < 150*time.Millisecond || eta > 250*time.Millisecond {
		t.Errorf("ETA %v, want some 210 ms", eta)
	}
}

func TestBeforeAnythingIsMeasured(t *testing.T) {
	_, a := New(Config{Downtime: DowntimeDefault}).Step(Sample{Total: inventory.GiB, Remaining: inventory.GiB})
	if a.Progress.ETA != Unknown || a.Progress.SendRate != 0 || a.Progress.Round != 1 || a.Port != Leave {
		t.Errorf("advice %+v of the first sample, want an unknown ETA", a)
	}
	_, a = New(Config{Downtime: DowntimeDefault}).Step(Sample{Total: inventory.GiB, Remaining: inventory.GiB, Mbps: 1000, Passes: 1})
	if a.Progress.SendRate != 125_000_000 || a.Progress.ETA <= 0 {
		t.Errorf("advice %+v, want QEMU's own 1000 Mbit/s until there is a measure", a)
	}
}

func TestAWrongHoldEnds(t *testing.T) {
	// Remaining stands still right at the threshold, as with a link that has stalled.
	track := New(Config{Downtime: DowntimeDefault})
	var a Advice
	var ports []PortAdvice
	var when []time.Duration
	for i := range 100 {
		at := time.Duration(i) * 10 * time.Millisecond
		track, a = track.Step(Sample{
			At: at, Total: inventory.GiB, Remaining: inventory.MiB, Transferred: inventory.Bytes(i) * inventory.MiB, Mbps: 800, Passes: 2,
		})
		if a.Port != Leave {
			ports, when = append(ports, a.Port), append(when, at)
		}
	}
	if len(ports) < 3 || ports[0] != Hold || ports[1] != Unhold || ports[2] != Hold {
		t.Fatalf("advice %v at %v, want hold, unhold, hold", ports, when)
	}
	if held, pause := when[1]-when[0], when[2]-when[1]; held != HoldMax || pause != HoldPause {
		t.Errorf("held for %v and left alone for %v, want %v and %v", held, pause, HoldMax, HoldPause)
	}
}

func TestDowntimeLimit(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{
		0:                        DowntimeDefault,
		-time.Second:             DowntimeDefault,
		time.Microsecond:         DowntimeMin,
		30 * time.Millisecond:    30 * time.Millisecond,
		1500 * time.Microsecond:  time.Millisecond,
		time.Hour:                DowntimeMax,
		300*time.Millisecond + 1: 300 * time.Millisecond,
	} {
		if got := DowntimeLimit(asked); got != want {
			t.Errorf("DowntimeLimit(%v) = %v, want %v", asked, got, want)
		}
	}
}

// TestAnyFigures feeds figures that no QEMU would give: what comes out must still make sense to a caller.
func TestAnyFigures(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		allowed := time.Duration(rapid.Int64Range(0, int64(DowntimeMax)).Draw(t, "downtime"))
		track := New(Config{Downtime: allowed})
		var at, heldAt, limit time.Duration
		held := false
		for range rapid.IntRange(1, 60).Draw(t, "samples") {
			at += time.Duration(rapid.Int64Range(-int64(time.Second), int64(time.Second)).Draw(t, "later"))
			var a Advice
			track, a = track.Step(Sample{
				At:          at,
				Total:       inventory.Bytes(rapid.Int64().Draw(t, "total")),
				Remaining:   inventory.Bytes(rapid.Int64().Draw(t, "remaining")),
				Transferred: inventory.Bytes(rapid.Int64().Draw(t, "transferred")),
				DirtyPages:  rapid.Int64().Draw(t, "dirty"),
				Mbps:        rapid.Float64().Draw(t, "mbps"),
				Passes:      rapid.IntRange(0, 4).Draw(t, "passes"),
				Predicted:   time.Duration(rapid.Int64().Draw(t, "predicted")),
			})
			p := a.Progress
			if p.ETA < 0 && p.ETA != Unknown || p.ETA > etaMax || p.Remaining < 0 || p.SendRate < 0 || p.DirtyRate < 0 || p.DowntimeBy < 0 || p.Round < 1 {
				t.Fatalf("progress %+v", p)
			}
			if a.Downtime < limit || a.Downtime > allowed {
				t.Fatalf("a downtime limit of %v after %v, of %v at most", a.Downtime, limit, allowed)
			}
			limit = a.Downtime
			now := p.Elapsed
			switch a.Port {
			case Hold:
				if held {
					t.Fatal("hold twice")
				}
				held, heldAt = true, now
			case Unhold:
				if !held {
					t.Fatal("unhold without hold")
				}
				held = false
			case Leave:
				if held && now-heldAt >= HoldMax {
					t.Fatalf("held for %v", now-heldAt)
				}
			}
		}
	})
}
