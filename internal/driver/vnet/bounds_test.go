package vnet

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// lone is one fabric with a trunk to host-2 that carries what it likes, a sender and a guest.
type lone struct {
	t             *testing.T
	now           time.Time
	fabric        *fabric
	trunk         *link
	sender, guest *port
	sent          int
}

func newLone(t *testing.T) *lone {
	t.Helper()
	l := &lone{t: t, now: time.Unix(1_700_000_000, 0), fabric: newBareFabric("host-1"), trunk: &link{host: "host-2", up: true, out: newQueue(trunkQueueMax)}}
	seg := newSegment(worldNetwork)
	l.fabric.networks[seg.key] = seg
	l.fabric.links["host-2"] = l.trunk
	l.sender, l.guest = l.plug("sender", mac{2, 0, 0, 0, 0, 1}), l.plug("guest", guestMAC)
	return l
}

func (l *lone) plug(id string, m mac) *port {
	l.t.Helper()
	p, err := newPort(PortSpec{ID: id, Network: worldNetwork, MAC: m.String()}, ModeNormal)
	must(l.t, err)
	p.connected = true
	must(l.t, l.fabric.addPort(p, l.now))
	return p
}

// send sends numbered frames to the guest.
func (l *lone) send(n int) {
	for range n {
		l.fabric.fromPort(l.sender, []*frame{numbered(guestMAC, l.sender.mac, l.sent)}, l.now)
		l.sent++
	}
}

// got demands that these numbers, and no others, wait for the port's client in order.
func (l *lone) got(p *port, first, last int) {
	l.t.Helper()
	items := p.out.drain()
	if len(items) != last-first {
		l.t.Fatalf("%d frames for %s, want %d to %d", len(items), p.spec.ID, first, last)
	}
	for i, it := range items {
		if n := int(binary.BigEndian.Uint32(it.frame.data[14:])); n != first+i {
			l.t.Fatalf("frame %d is number %d, want %d", i, n, first+i)
		}
	}
	releaseAll(items)
}

// longestPause is how many frames come in the longest pause after which a guest goes on where it was: 10,000 a second for 7 s.
const longestPause = 70_000

// A guest that stood for as long as a stream may stand still gets every frame of that time when its migration is aborted.
func TestAbortAfterTheLongestPause(t *testing.T) {
	l := newLone(t)
	l.send(10)
	l.got(l.guest, 0, 10)
	must(t, l.fabric.hold(l.guest))
	l.send(1000)
	must(t, l.fabric.startForward(l.guest, "host-2", "mig", nil, l.now))
	l.send(longestPause - 1000)
	if drops := l.trunk.stats.dropsOut + l.guest.stats.DropsOut; drops > 0 {
		t.Fatalf("%d frames dropped in the pause", drops)
	}
	must(t, l.fabric.resume(l.guest, true, l.now))
	l.send(portQueueMax) // and more comes before the guest has read any of them
	l.got(l.guest, 10, 10+longestPause+portQueueMax)
}

// What is kept in a switchover is bounded in frames and in memory. What goes beyond is dropped and counted, at a held port and, when
// the target that had it never runs the guest, at one that forwarded.
func TestWhatASwitchoverKeepsIsBounded(t *testing.T) {
	l := newLone(t)
	must(t, l.fabric.hold(l.guest))
	l.send(holdMax + 3)
	if l.guest.stats.DropsOut != 3 || len(l.guest.backlog) != holdMax {
		t.Fatalf("%d frames kept and %d dropped, want %d and 3", len(l.guest.backlog), l.guest.stats.DropsOut, holdMax)
	}
	must(t, l.fabric.startForward(l.guest, "host-2", "mig", nil, l.now))
	l.send(5)
	if l.guest.stats.DropsOut != 3 {
		t.Fatalf("%d frames dropped, and the target has all but 3", l.guest.stats.DropsOut)
	}
	must(t, l.fabric.resume(l.guest, true, l.now))
	if l.guest.stats.DropsOut != 8 {
		t.Fatalf("%d frames dropped, want the 3 of the hold and the 5 that only the target had", l.guest.stats.DropsOut)
	}
	l.got(l.guest, 0, holdMax)

	must(t, l.fabric.hold(l.guest))
	large := newFrame(frameMax)
	copy(large.data, numbered(guestMAC, l.sender.mac, 0).data)
	for range holdBytes/frameMax + 1 {
		l.fabric.fromPort(l.sender, []*frame{large.retain()}, l.now)
	}
	if l.guest.stats.DropsOut != 9 || l.guest.bytes > holdBytes {
		t.Fatalf("%d bytes are kept and %d frames dropped, want %d at most and 9", l.guest.bytes, l.guest.stats.DropsOut, holdBytes)
	}
}

// A guest that migrates may fall behind as far as it may stand; one that does not is like any port that is behind.
func TestAGuestThatMigratesMayFallBehind(t *testing.T) {
	l := newLone(t)
	l.send(portQueueMax + 1)
	if l.guest.stats.DropsOut != 1 {
		t.Fatalf("%d frames dropped, want 1: the guest does not migrate", l.guest.stats.DropsOut)
	}
	l.got(l.guest, 0, portQueueMax)
	l.guest.moving = true // as Track does
	from := l.sent
	l.send(longestPause)
	must(t, l.fabric.resume(l.guest, true, l.now)) // given up in pre-copy
	l.now = l.now.Add(patience - 1)
	l.send(1000)
	if l.guest.stats.DropsOut != 1 {
		t.Fatalf("%d frames dropped", l.guest.stats.DropsOut-1)
	}
	l.now = l.now.Add(1)
	l.send(1) // it has had its time
	if l.guest.stats.DropsOut != 2 {
		t.Fatalf("%d frames dropped, want 2", l.guest.stats.DropsOut)
	}
	l.got(l.guest, from, from+longestPause+1000)
}

// Frames of a guest that were parked until its last ones from the source came are not too many at once for who gets them.
func TestParkedFramesAreNoBurst(t *testing.T) {
	l := newLone(t)
	roaming := mac{0x52, 0x54, 0, 0, 0, 0x78}
	third := &link{host: "host-3", up: true, out: newQueue(trunkQueueMax)}
	l.fabric.links["host-3"] = third
	c := &control{mac: roaming, mig: keyOfMigration("mig"), number: 1, host: "host-2"}
	net := l.guest.seg.key
	l.fabric.fromLink(third, []item{{kind: kindMoved, net: net, ctl: c}}, l.now)
	for i := range parkMax {
		l.fabric.fromLink(third, []item{{kind: kindData, net: net, frame: numbered(guestMAC, roaming, i)}}, l.now)
	}
	l.got(l.guest, 0, 0)
	l.fabric.fromLink(l.trunk, []item{{kind: kindEnd, net: net, ctl: c}}, l.now)
	l.got(l.guest, 0, parkMax)
	l.fabric.fromLink(third, []item{{kind: kindData, net: net, frame: numbered(guestMAC, roaming, parkMax)}}, l.now)
	l.got(l.guest, parkMax, parkMax+1)
}

// What a port dropped is known of its network when the port has gone; what the source of a migration has as well is no drop.
func TestDropsOutliveTheirPort(t *testing.T) {
	nodes := mesh(t, 2)
	ctx := t.Context()
	a, b := nodes[0], nodes[1]
	s := a.station("sender", macA)
	must(t, a.AddPort(ctx, a.spec("guest", guestMAC.String())))
	a.sw.look(func() { a.sw.fabric.ports["guest"].keepUntil = time.Time{} }) // nobody attaches to it
	for i := range 5 {
		s.send(guestMAC, i)
	}
	drops := func(n *node) uint64 {
		networks, err := n.Networks(ctx)
		must(t, err)
		return networks[0].DropsOut
	}
	eventually(t, "five drops are counted", func() bool { return drops(a) == 5 })
	must(t, a.RemovePort(ctx, "guest"))
	if n := drops(a); n != 5 {
		t.Errorf("%d drops after the port has gone, want 5", n)
	}

	g := a.station("guest", guestMAC.String())
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", a.host))
	must(t, a.Hold(ctx, "guest", drainWait))
	s.send(guestMAC, 5)
	must(t, a.Forward(ctx, "guest", b.host, "mig", 0))
	eventually(t, "the target has the frame", func() bool {
		p, err := b.Port(ctx, "guest")
		must(t, err)
		return p.Queued == 1
	})
	must(t, b.Discard(ctx, "guest", "mig"))
	must(t, a.Abort(ctx, "guest", inventory.MigrationID("mig")))
	g.expect(s.mac, 5)
	if there, here := drops(b), drops(a); there != 0 || here != 5 {
		t.Errorf("%d drops at the target and %d at the source, want none and 5", there, here)
	}
}

// An aborted migration leaves nothing remembered at the port, in whatever phase it was.
func TestAbortEndsTheCount(t *testing.T) {
	nodes := mesh(t, 1)
	ctx := t.Context()
	a := nodes[0]
	g, s := a.station("guest", guestMAC.String()), a.station("sender", macA)
	must(t, a.Track(ctx, "guest", Filter{}))
	must(t, a.Unhold(ctx, "guest"))
	s.send(guestMAC, 0)
	g.expect(s.mac, 0)
	must(t, a.Abort(ctx, "guest", "mig"))
	s.send(guestMAC, 1)
	g.expect(s.mac, 1)
	if n, err := a.Tracked(ctx, "guest"); err != nil || n != 0 {
		t.Errorf("%d frames counted (%v), want none", n, err)
	}
}
