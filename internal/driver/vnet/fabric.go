package vnet

import (
	"log/slog"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	tableMax   = 4096            // learned addresses per network; further ones are flooded to
	tableAge   = 5 * time.Minute // an address not seen for so long is forgotten (IEEE 802.1D's default)
	sweepEvery = 10 * time.Second
	// reconnectGrace is how long frames are kept for a port whose client is away: QEMU comes back within 200 ms of a
	// switch's restart (reconnect-ms).
	reconnectGrace = 2 * time.Second
)

// fabric is the forwarding state of one switch: tables, ports, trunks and the machines of the switchover. It does no
// I/O and starts no goroutine: frames and messages come in as calls, and leave through the queues of ports and links,
// which is why tests can put several fabrics behind channels of their own and try every interleaving.
//
// One lock guards all of it, held for table look-ups and queue appends only. All times come from the caller.
type fabric struct {
	host inventory.HostID
	log  *slog.Logger

	// left is called, without the lock, when a port has removed itself after a switchover.
	left func(*port)
	// timers is called when a deadline may have come nearer.
	timers func()

	mu       sync.Mutex
	networks map[netKey]*segment
	ports    map[string]*port
	links    map[inventory.HostID]*link
	swept    time.Time
	gone     []*port // removed under the lock, left is due
	burst    bool    // what is routed now was kept by a switchover
}

// segment is one network on this switch.
type segment struct {
	id     inventory.NetworkID
	key    netKey
	ports  map[*port]bool
	guests map[mac]*port // ports whose guest's address is known
	table  map[mac]*entry
	moved  map[mac]*moved
	ended  map[moveKey]ended
	// What ports that are gone have dropped.
	dropsIn, dropsOut uint64
}

// entry says where an address is: exactly one of port and link is set.
type entry struct {
	port *port
	link *link
	seen time.Time
}

// link is the fabric's view of a trunk.
type link struct {
	host  inventory.HostID
	up    bool
	out   *queue
	stats linkStats
}

type linkStats struct {
	framesIn, bytesIn   uint64
	framesOut, bytesOut uint64
	dropsIn, dropsOut   uint64
}

func newFabric(host inventory.HostID, log *slog.Logger) *fabric {
	return &fabric{
		host: host, log: log,
		left: func(*port) {}, timers: func() {},
		networks: map[netKey]*segment{}, ports: map[string]*port{}, links: map[inventory.HostID]*link{},
	}
}

func newSegment(id inventory.NetworkID) *segment {
	return &segment{
		id: id, key: keyOfNetwork(id),
		ports: map[*port]bool{}, guests: map[mac]*port{}, table: map[mac]*entry{},
		moved: map[mac]*moved{}, ended: map[moveKey]ended{},
	}
}

// unlock ends a change of the fabric and reports ports that went away in it.
func (f *fabric) unlock() {
	gone := f.gone
	f.gone = nil
	f.mu.Unlock()
	for _, p := range gone {
		f.left(p)
	}
}

// fromPort takes frames that a port's client sent, and their references. When the port is closed to its client it
// returns what it did not take, and a channel that is closed when trying again makes sense.
func (f *fabric) fromPort(p *port, frames []*frame, now time.Time) ([]*frame, <-chan struct{}) {
	f.mu.Lock()
	defer f.unlock()
	if p.gate != nil {
		return frames, p.gate
	}
	for _, fr := range frames {
		f.ingress(p, fr, now)
	}
	return nil, nil
}

func (f *fabric) ingress(p *port, fr *frame, now time.Time) {
	defer fr.release()
	p.stats.FramesIn++
	p.stats.BytesIn += uint64(len(fr.data))
	source := fr.source()
	if p.seg == nil || source.multicast() || (p.spec.Guard && source != p.mac) {
		p.stats.DropsIn++
		return
	}
	if p.mode != ModeForwarding || source != p.mac { // a guest that moves away is learned at its target
		p.seg.learn(source, p, nil, now)
	}
	f.route(p.seg, f.host, p, nil, fr, now)
}

// fromLink takes items that a peer sent, and their frames' references.
func (f *fabric) fromLink(l *link, items []item, now time.Time) {
	f.mu.Lock()
	defer f.unlock()
	for _, it := range items {
		if it.kind == kindData {
			f.data(l, it, now)
		} else {
			f.control(l, it, now)
		}
	}
}

func (f *fabric) data(l *link, it item, now time.Time) {
	l.stats.framesIn++
	l.stats.bytesIn += uint64(len(it.frame.data))
	seg := f.networks[it.net]
	source := it.frame.source()
	if seg == nil || source.multicast() {
		l.stats.dropsIn++
		it.frame.release()
		return
	}
	if seg.park(l, it.frame) {
		return
	}
	seg.learn(source, nil, l, now)
	f.route(seg, l.host, nil, l, it.frame, now)
	it.frame.release()
}

// learn notes where an address was seen.
func (s *segment) learn(m mac, p *port, l *link, now time.Time) {
	if l != nil {
		if own := s.guests[m]; own != nil && (own.mode == ModeNormal || own.mode == ModeHeld) {
			return // the guest is here: what says otherwise is late or a lie
		}
		if mv := s.moved[m]; mv != nil && mv.source == l.host && now.Before(mv.distrust) {
			return // a late frame from where the guest was
		}
	}
	e := s.table[m]
	if e == nil {
		if len(s.table) >= tableMax {
			return
		}
		e = &entry{}
		s.table[m] = e
	}
	e.port, e.link, e.seen = p, l, now
}

// route sends a frame on: to where its target is, or everywhere. Exactly one of p and l is where it came from. The
// caller keeps its reference.
func (f *fabric) route(seg *segment, origin inventory.HostID, p *port, l *link, fr *frame, now time.Time) {
	target := fr.target()
	if !target.multicast() {
		if g := seg.guests[target]; g != nil && g.mode == ModeForwarding && g != p && !g.turned(origin) {
			f.deliver(g, origin, fr, now) // also when the table says already that it is elsewhere
			return
		}
		if e := seg.table[target]; e != nil {
			switch {
			case e.port != nil && e.port != p:
				f.deliver(e.port, origin, fr, now)
			case e.link != nil && l == nil:
				e.link.send(item{kind: kindData, net: seg.key, frame: fr.retain()})
			case e.link != nil: // split horizon: never from trunk to trunk
				l.stats.dropsIn++
			}
			return
		}
	}
	for q := range seg.ports {
		if q != p {
			f.deliver(q, origin, fr, now)
		}
	}
	if l == nil {
		for _, peer := range f.links {
			peer.send(item{kind: kindData, net: seg.key, frame: fr.retain()})
		}
	}
}

// deliver hands a frame from an origin to a port, or to what stands in for it during a switchover. The caller keeps its
// reference.
func (f *fabric) deliver(p *port, origin inventory.HostID, fr *frame, now time.Time) {
	switch {
	case p.mode == ModeReserved: // the source host has this frame as well and forwards it
	case p.turned(origin): // the target has this frame as well, directly
	case p.window != nil && p.window.intercept(p, origin, fr):
	default:
		f.accept(p, fr.retain(), now)
	}
}

// accept takes a frame, and its reference, that is due to the port's guest.
func (f *fabric) accept(p *port, fr *frame, now time.Time) {
	switch p.mode {
	case ModeNormal:
		p.send(fr, f.burst, now)
	case ModeHeld, ModeReserved:
		p.keep(fr)
	case ModeForwarding:
		f.forward(p, fr)
	}
}

// send queues an item that carries a frame for the peer, or drops it when the trunk is down or behind.
func (l *link) send(it item) bool {
	size := uint64(len(it.frame.data))
	if !l.up {
		it.frame.release()
		l.stats.dropsOut++
		return false
	}
	if !l.out.push(it) {
		l.stats.dropsOut++
		return false
	}
	l.stats.framesOut++
	l.stats.bytesOut += size
	return true
}

// tell queues a control message for the peer; when the trunk is down it is lost, and time limits take over.
func (l *link) tell(it item) {
	if l.up {
		l.out.force(it)
	}
}

// linkUp makes a trunk carry frames. What a switchover has sent and the broken trunk may have lost is sent again.
func (f *fabric) linkUp(l *link, now time.Time) {
	f.mu.Lock()
	defer f.unlock()
	l.up = true
	releaseAll(l.out.drain())
	for _, p := range f.ports {
		f.resend(p, l)
	}
}

// linkDown forgets what was learned over a trunk and stops waiting for what can no longer come.
func (f *fabric) linkDown(l *link, now time.Time) {
	f.mu.Lock()
	defer f.unlock()
	l.up = false
	lost := l.out.drain()
	for _, it := range lost {
		if it.frame != nil {
			l.stats.dropsOut++
		}
	}
	releaseAll(lost)
	f.linkLost(l, now)
	for _, seg := range f.networks {
		for m, e := range seg.table {
			if e.link == l {
				delete(seg.table, m)
			}
		}
	}
}

// next returns when tick is due.
func (f *fabric) next(now time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	due := now.Add(sweepEvery)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(due) {
			due = t
		}
	}
	for _, p := range f.ports {
		earlier(p.deadline())
	}
	for _, seg := range f.networks {
		for _, mv := range seg.moved {
			earlier(mv.parkUntil)
		}
	}
	return due
}

// tick does what time demands: it ends waits, announces guests and forgets old addresses.
func (f *fabric) tick(now time.Time) {
	f.mu.Lock()
	defer f.unlock()
	for _, p := range f.ports {
		f.tickPort(p, now)
	}
	sweep := now.Sub(f.swept) >= sweepEvery
	for _, seg := range f.networks {
		f.tickMoved(seg, now, sweep)
		if !sweep {
			continue
		}
		for m, e := range seg.table {
			if now.Sub(e.seen) > tableAge && seg.guests[m] == nil {
				delete(seg.table, m)
			}
		}
	}
	if sweep {
		f.swept = now
	}
}
