package vnet

import (
	"log/slog"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	// distrustFor is how long an address is not learned again from the host it has left.
	distrustFor = 5 * time.Second
	movesMax    = 4096 // moves and ends remembered per network
)

// moveKey names one guest address in one migration.
type moveKey struct {
	mac mac
	mig migKey
}

// moved is what a host knows of the last move of an address.
type moved struct {
	mig            migKey
	source, target inventory.HostID
	number         uint64 // counts the address's moves; an older MOVED that comes late is ignored
	known          time.Time
	distrust       time.Time

	// While the guest's last frames from the source may still come, its frames from the target are parked.
	parkUntil time.Time
	via       *link
	parked    []*frame
}

// ended is the word of a source that nothing from the guest follows.
type ended struct {
	number uint64
	at     time.Time
}

// control takes a message of a peer.
func (f *fabric) control(l *link, it item, now time.Time) {
	switch it.kind {
	case kindForward:
		l.stats.framesIn++
		l.stats.bytesIn += uint64(len(it.frame.data))
		f.arrived(l, it, now)
	case kindMoved:
		f.onMoved(l, it, now)
	case kindFlush:
		if it.ctl.target == f.host {
			f.settled(it, it.ctl.host, now, func(o *origin) { o.flushed = true })
			// The target's own flush has been to the source and back; that of others needs no further step either.
			return
		}
		f.passFlush(l, it)
	case kindAck:
		f.settled(it, l.host, now, func(o *origin) { o.acked = true })
	case kindEnd:
		f.onEnd(it, now)
	case kindData, kindKeepalive, kindHello:
	}
}

// settled notes at the target what is known of an origin.
func (f *fabric) settled(it item, id inventory.HostID, now time.Time, note func(*origin)) {
	seg := f.networks[it.net]
	if seg == nil {
		return
	}
	p := seg.guests[it.ctl.mac]
	if p == nil || p.window == nil || p.arrive.key != it.ctl.mig {
		return
	}
	if o := p.window.origins[id]; o != nil {
		note(o)
		f.settle(p, id, false, now)
	}
}

// onMoved turns this host's frames for an address to the peer that has it now. See the package comment for what FLUSH
// and ACK promise; both are sent even by a host without that network, so that nobody waits for it.
func (f *fabric) onMoved(l *link, it item, now time.Time) {
	c := it.ctl
	seg := f.networks[it.net]
	if seg != nil && !f.turn(seg, l, c, now) {
		return
	}
	switch source := f.links[c.host]; {
	case c.host == "": // told again over a new trunk: the move itself is long over
	case c.host == f.host:
		// Our own flush needs no way to the source. The ack below may overtake it, not what is behind either.
		defer f.pass(f.leaving(it), flushOf(it, f.host, l.host))
	case source != nil && source.up:
		source.tell(flushOf(it, f.host, l.host))
	default: // nothing of ours is on its way over the source
		l.tell(flushOf(it, f.host, l.host))
	}
	l.tell(item{kind: kindAck, net: it.net, ctl: &control{mac: c.mac, mig: c.mig}})
}

func flushOf(it item, origin, target inventory.HostID) item {
	return item{kind: kindFlush, net: it.net, ctl: &control{mac: it.ctl.mac, mig: it.ctl.mig, host: origin, target: target}}
}

// turn updates the table for MOVED and reports whether the peer is believed.
func (f *fabric) turn(seg *segment, l *link, c *control, now time.Time) bool {
	if own := seg.guests[c.mac]; own != nil && (own.mode == ModeNormal || own.mode == ModeHeld) {
		// A guest that is live here cannot be live there: one of the two is a mistake that the agents must settle.
		f.log.Error("peer claims the address of a live port", slog.String("peer", string(l.host)),
			slog.String("port", own.spec.ID), slog.String("mac", c.mac.String()))
		return false
	}
	old := seg.moved[c.mac]
	if old != nil && old.number > c.number {
		return true // late: the address has moved on, and so have our frames
	}
	if old != nil {
		f.unpark(seg, old, now)
	}
	seg.table[c.mac] = &entry{link: l, seen: now}
	mv := &moved{mig: c.mig, source: c.host, target: l.host, number: c.number, known: now, distrust: now.Add(distrustFor)}
	if old == nil && len(seg.moved) >= movesMax {
		return true // the table is right; only late frames of the source could turn it back
	}
	seg.moved[c.mac] = mv
	source := f.links[c.host]
	if _, done := seg.ended[moveKey{c.mac, c.mig}]; !done && source != nil && source.up {
		mv.parkUntil, mv.via = now.Add(flushWait), l
		f.timers()
	}
	return true
}

// park keeps back a frame that a guest sent from its target, and takes its reference, while frames that it sent before
// may still come from its source.
func (s *segment) park(l *link, fr *frame) bool {
	mv := s.moved[fr.source()]
	if mv == nil || mv.via != l {
		return false
	}
	if len(mv.parked) >= parkMax {
		l.stats.dropsIn++
		fr.release()
		return true
	}
	mv.parked = append(mv.parked, fr)
	return true
}

// unpark lets a guest's frames from its target pass.
func (f *fabric) unpark(seg *segment, mv *moved, now time.Time) {
	l, frames := mv.via, mv.parked
	mv.via, mv.parked, mv.parkUntil = nil, nil, time.Time{}
	f.burst = true
	defer func() { f.burst = false }()
	for _, fr := range frames {
		seg.learn(fr.source(), nil, l, now)
		f.route(seg, l.host, nil, l, fr, now)
		fr.release()
	}
}

// onEnd notes that the source has sent everything that came from the guest.
func (f *fabric) onEnd(it item, now time.Time) {
	seg := f.networks[it.net]
	if seg == nil {
		return
	}
	key := moveKey{it.ctl.mac, it.ctl.mig}
	if len(seg.ended) < movesMax {
		seg.ended[key] = ended{number: it.ctl.number, at: now}
	}
	if mv := seg.moved[key.mac]; mv != nil && mv.mig == key.mig {
		f.unpark(seg, mv, now)
	}
	if p := seg.guests[key.mac]; p != nil && p.arrive.key == key.mig && p.mode != ModeReserved {
		p.openGate()
	}
}

// linkLost stops waiting for what a broken trunk would have brought.
func (f *fabric) linkLost(l *link, now time.Time) {
	for _, p := range f.ports {
		if p.window != nil && p.arrive.peer == l.host {
			f.settleAll(p, now)
		} else if p.window != nil {
			f.settle(p, l.host, true, now)
		}
		if p.arrive.peer == l.host && p.mode != ModeReserved {
			p.openGate()
		}
		f.leaveIfFlushed(p)
	}
	for _, seg := range f.networks {
		for _, mv := range seg.moved {
			if mv.via == l || mv.source == l.host {
				f.unpark(seg, mv, now)
			}
		}
	}
}

func (f *fabric) tickMoved(seg *segment, now time.Time, sweep bool) {
	for m, mv := range seg.moved {
		if !mv.parkUntil.IsZero() && !now.Before(mv.parkUntil) {
			f.unpark(seg, mv, now)
		}
		if sweep && now.Sub(mv.known) > tableAge {
			delete(seg.moved, m)
		}
	}
	if !sweep {
		return
	}
	for key, e := range seg.ended {
		if now.Sub(e.at) > tableAge {
			delete(seg.ended, key)
		}
	}
}
