package vnet

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	burstEvery = time.Millisecond
	burst      = 4 // frames of each of three senders per burst: 12,000 frames/s on their way to the guest
)

// roamer is a guest that migrates between nodes and checks what it receives, and whose frames the senders check.
type roamer struct {
	t       *testing.T
	nodes   []*node
	at      int
	self    *station
	senders []*station
	tries   int

	mu     sync.Mutex
	next   map[mac]int // of each sender, the number that must come next
	wrong  []string
	spoken atomic.Int64 // frames the guest has sent to each sender
}

// receive takes what the guest's station has got and notes what is not in order.
func (g *roamer) receive(s *station) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.mu.Lock()
	got := s.got
	s.got = nil
	s.mu.Unlock()
	for _, f := range got {
		if binary.BigEndian.Uint16(f.data[12:]) != 0x88b5 {
			continue
		}
		n := int(binary.BigEndian.Uint32(f.data[14:]))
		if want := g.next[f.source()]; n != want && len(g.wrong) < 20 {
			g.wrong = append(g.wrong, fmt.Sprintf("guest got %d of %s, want %d (switchover %d)", n, f.source(), want, g.tries))
		}
		g.next[f.source()] = n + 1
		f.release()
	}
}

// speak has the guest send a frame to every sender.
func (g *roamer) speak() {
	n := int(g.spoken.Add(1) - 1)
	for _, s := range g.senders {
		must(g.t, g.self.write(numbered(s.mac, guestMAC, n)))
	}
}

// migrate performs a switchover as the agents would, or gives it up after Forward.
func (g *roamer) migrate(target int, abort bool) {
	t, ctx := g.t, g.t.Context()
	a, b := g.nodes[g.at], g.nodes[target]
	id := inventory.MigrationID(fmt.Sprintf("mig-%d", g.tries))
	g.tries++
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), id, a.host))
	arriving := b.attach("guest", guestMAC.String())
	g.speak()
	must(t, a.Hold(ctx, "guest", drainWait))
	held, err := a.Port(ctx, "guest")
	must(t, err)
	eventually(t, "the guest has noted all that it has read", func() bool {
		g.self.mu.Lock()
		defer g.self.mu.Unlock()
		return g.self.all >= held.Stats.FramesOut
	})
	g.receive(g.self) // Hold has answered, so this is all that it will get
	g.speak()         // it runs until it is stopped
	must(t, a.Forward(ctx, "guest", b.host, id, 0))
	must(t, a.Forward(ctx, "guest", b.host, id, 0)) // an agent that is not sure repeats itself
	if abort {
		must(t, b.Discard(ctx, "guest", id))
		<-arriving.done
		must(t, a.Abort(ctx, "guest", id))
		g.speak()
		return
	}
	g.self.mu.Lock()
	late := len(g.self.got)
	g.self.mu.Unlock()
	if late > 0 {
		t.Fatalf("%d frames were written to the source after Hold had answered", late)
	}
	source := g.self
	g.self = arriving
	g.speak() // it runs, the port opens a moment later
	must(t, b.Open(ctx, "guest", id))
	must(t, a.Commit(ctx, "guest", id))
	must(t, b.Open(ctx, "guest", id))
	g.speak()
	<-source.done // the port leaves by itself
	g.at = target
}

// TestSwitchoverUnderLoad moves a guest 60 times between three hosts while a sender on each sends to it, alone and
// flooded, 12,000 frames/s in all; every fifth switchover is given up. Nothing is lost, doubled or out of order, either
// way.
func TestSwitchoverUnderLoad(t *testing.T) {
	g := &roamer{t: t, nodes: mesh(t, 3), next: map[mac]int{}}
	g.self = g.nodes[0].station("guest", guestMAC.String())
	for i, n := range g.nodes {
		g.senders = append(g.senders, n.station("sender", fmt.Sprintf("02:00:00:00:00:%02x", i)))
	}
	stop := make(chan struct{})
	sent := make([]int, len(g.senders))
	var sending sync.WaitGroup
	for i, s := range g.senders {
		sending.Go(func() {
			pace := time.NewTicker(burstEvery)
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				frames := make([]*frame, burst)
				for j := range frames {
					target := guestMAC
					if rand.IntN(20) == 0 {
						target = broadcast
					}
					frames[j] = numbered(target, s.mac, sent[i])
					sent[i]++
				}
				if err := s.write(frames...); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 60 {
		target := (g.at + 1 + rand.IntN(2)) % 3
		g.migrate(target, i%5 == 4)
		g.receive(g.self)
		<-time.After(time.Duration(rand.IntN(10)) * time.Millisecond)
		g.receive(g.self)
	}
	close(stop)
	sending.Wait()

	eventually(t, "the guest has the last frame of every sender", func() bool {
		g.receive(g.self)
		g.mu.Lock()
		defer g.mu.Unlock()
		for i, s := range g.senders {
			if g.next[s.mac] < sent[i] {
				return len(g.wrong) > 0
			}
		}
		return true
	})
	for _, w := range g.wrong {
		t.Error(w)
	}
	for i, s := range g.senders {
		for n := range int(g.spoken.Load()) {
			f := s.next()
			for f.source() != guestMAC || f.target() != s.mac { // flooded
				f = s.next()
			}
			if got := int(binary.BigEndian.Uint32(f.data[14:])); got != n {
				t.Fatalf("sender %d got frame %d of the guest, want %d", i, got, n)
			}
		}
	}
	for _, n := range g.nodes {
		ports, err := n.Ports(t.Context())
		must(t, err)
		for _, p := range ports {
			if p.Stats.DropsOut+p.Stats.DropsIn > 0 {
				t.Errorf("%s: port %s dropped frames: %+v", n.host, p.ID, p.Stats)
			}
		}
	}
	t.Logf("%d switchovers, %d + %d + %d frames to the guest, %d from it", g.tries, sent[0], sent[1], sent[2], 3*g.spoken.Load())
}

// The trunk between source and target breaks in the middle of a switchover: the copies are sent again, and the target
// drops those it has.
func TestSwitchoverSurvivesBrokenTrunk(t *testing.T) {
	nodes := mesh(t, 2)
	ctx := t.Context()
	a, b := nodes[0], nodes[1]
	g := a.station("guest", guestMAC.String())
	s := a.station("sender", macA)
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", a.host))
	arrived := b.attach("guest", guestMAC.String())
	must(t, a.Hold(ctx, "guest", drainWait))
	for i := range 100 {
		s.send(guestMAC, i)
	}
	must(t, a.Forward(ctx, "guest", b.host, "mig", 0))
	eventually(t, "the target has the first frames", func() bool {
		p, err := b.Port(ctx, "guest")
		must(t, err)
		return p.Queued == 100
	})
	a.breakTrunk(b.host)
	for i := range 100 {
		s.send(guestMAC, 100+i)
	}
	eventually(t, "the target has all frames", func() bool {
		p, err := b.Port(ctx, "guest")
		must(t, err)
		return p.Queued == 200
	})
	must(t, b.Open(ctx, "guest", "mig"))
	must(t, a.Commit(ctx, "guest", "mig"))
	<-g.done
	s.send(guestMAC, 200)
	for i := range 201 {
		arrived.expect(s.mac, i)
	}
}

// A switchover whose target host is cut off for good is aborted, and the source's guest gets every frame.
func TestAbortWithoutTarget(t *testing.T) {
	nodes := mesh(t, 2)
	ctx := t.Context()
	a, b := nodes[0], nodes[1]
	g := a.station("guest", guestMAC.String())
	s := a.station("sender", macA)
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", a.host))
	must(t, a.Hold(ctx, "guest", drainWait))
	s.send(guestMAC, 0)
	must(t, a.Forward(ctx, "guest", b.host, "mig", 0))
	s.send(guestMAC, 1)
	b.stop()
	a.waitTrunks(0)
	s.send(guestMAC, 2)
	must(t, a.Abort(ctx, "guest", "mig"))
	s.send(guestMAC, 3)
	for i := range 4 {
		g.expect(s.mac, i)
	}
}

// A reserved port lets nothing out and nothing in but what the source forwards; after a restart of its switch too.
func TestReservedPortIsClosed(t *testing.T) {
	nodes := mesh(t, 2)
	ctx := t.Context()
	b := nodes[1]
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", "host-1"))
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", "host-1"))
	if err := b.Reserve(ctx, b.spec("guest", guestMAC.String()), "other", "host-1"); !fault.Is(err, fault.Conflict) {
		t.Fatalf("second reservation: %v", err)
	}
	g := b.attach("guest", guestMAC.String())
	s := b.station("sender", macB)
	s.send(guestMAC, 1)
	s.send(broadcast, 2)
	g.send(s.mac, 3)
	p, err := b.Port(ctx, "guest")
	must(t, err)
	if p.Mode != ModeReserved || p.Queued != 0 {
		t.Fatalf("port %+v, want reserved and empty", p)
	}
	b.stop()
	<-g.done
	b.start()
	p, err = b.Port(ctx, "guest")
	must(t, err)
	if p.Mode != ModeReserved || p.Migration != "mig" || p.Host != "host-1" {
		t.Fatalf("after a restart: %+v", p)
	}
	other := b.attach("sender", macB)
	other.send(broadcast, 4)
	must(t, b.Discard(ctx, "guest", "mig"))
	if _, err := b.Port(ctx, "guest"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("after discard: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.got) > 0 {
		t.Fatalf("%d frames leaked from a reserved port", len(s.got))
	}
}

// The guest's address is announced five times on local ports and over trunks.
func TestAnnounce(t *testing.T) {
	nodes := mesh(t, 2)
	ctx := t.Context()
	a, b := nodes[0], nodes[1]
	a.station("guest", guestMAC.String())
	near, far := b.station("near", macB), a.station("far", macA)
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", a.host))
	must(t, a.Hold(ctx, "guest", drainWait))
	must(t, a.Forward(ctx, "guest", b.host, "mig", 0))
	began := time.Now()
	must(t, b.Open(ctx, "guest", "mig"))
	must(t, a.Commit(ctx, "guest", "mig"))
	for _, s := range []*station{near, far} {
		eventually(t, "five announcements", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			n := 0
			for _, f := range s.got {
				if binary.BigEndian.Uint16(f.data[12:]) == etherRARP && f.source() == guestMAC && f.target() == broadcast {
					n++
				}
			}
			return n == len(announceAt)
		})
	}
	if took := time.Since(began); took < announceAt[4] {
		t.Fatalf("five announcements within %v, want them spread over %v", took, announceAt[4])
	}
}

// A peer whose flush never comes delays direct frames for flushWait and no longer.
func TestMissingFlushIsWaitedForBriefly(t *testing.T) {
	nodes := mesh(t, 3)
	ctx := t.Context()
	a, b, c := nodes[0], nodes[1], nodes[2]
	a.station("guest", guestMAC.String())
	s := b.station("sender", macB)
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", a.host))
	arrived := b.attach("guest", guestMAC.String())
	must(t, a.Hold(ctx, "guest", drainWait))
	must(t, a.Forward(ctx, "guest", b.host, "mig", 0))
	c.sw.fabric.mu.Lock() // this host stands still
	defer c.sw.fabric.mu.Unlock()
	must(t, b.Open(ctx, "guest", "mig"))
	s.send(guestMAC, 1) // its own origin does not wait for host-3
	arrived.expect(s.mac, 1)
	eventually(t, "the window is closed", func() bool {
		b.sw.fabric.mu.Lock()
		defer b.sw.fabric.mu.Unlock()
		return b.sw.fabric.ports["guest"].window == nil
	})
}
