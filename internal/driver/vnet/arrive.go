package vnet

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	// flushWait is how long direct frames wait for the forwarded ones before them, and a guest's frames from its target
	// for its last ones from the source. A round trip is enough; the rest is for a busy peer.
	flushWait = 500 * time.Millisecond
	parkMax   = 16384 // frames from a guest that wait at one host
	// patience is how long after a migration's end a guest may take to catch up with what came for it.
	patience = 10 * time.Second
)

// announceAt is when a guest that arrived is announced: QEMU's own pattern (announce-initial 50, step 100, 5 rounds).
var announceAt = [...]time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 450 * time.Millisecond, 800 * time.Millisecond}

// window orders, at the target, the frames of each origin: forwarded ones first, then those it sent here directly.
type window struct {
	origins map[inventory.HostID]*origin
	until   time.Time
	held    int
}

// origin is a host whose frames for the guest may still come both ways.
type origin struct {
	acked   bool // it has processed MOVED: from here on its direct frames count
	flushed bool // its last forwarded frame has passed
	held    []*frame
	passing *item // its flush for the guest's next move, which must not overtake what is held
}

// intercept reports whether the window takes care of a direct frame. The caller keeps its reference.
func (w *window) intercept(p *port, from inventory.HostID, fr *frame) bool {
	o := w.origins[from]
	switch {
	case o == nil:
		return false
	case !o.acked: // flooded before it knew of the move: the source's copy counts
		return true
	case w.held >= holdMax:
		p.stats.DropsOut++
		return true
	}
	o.held = append(o.held, fr.retain())
	w.held++
	return true
}

// settle ends the wait for an origin if it is over, or if force says so.
func (f *fabric) settle(p *port, id inventory.HostID, force bool, now time.Time) {
	o := p.window.origins[id]
	if o == nil || (!force && (!o.acked || !o.flushed)) {
		return
	}
	delete(p.window.origins, id)
	p.window.held -= len(o.held)
	for _, fr := range o.held {
		f.accept(p, fr, now)
	}
	if len(p.window.origins) == 0 {
		p.window = nil
	}
	if o.passing != nil {
		f.pass(f.leaving(*o.passing), *o.passing)
	}
}

func (f *fabric) settleAll(p *port, now time.Time) {
	if p.window == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(p.window.origins)) {
		f.settle(p, id, true, now)
	}
}

func (p *port) dropWindow() {
	if p.window == nil {
		return
	}
	for _, o := range p.window.origins {
		for _, fr := range o.held {
			fr.release()
		}
	}
	p.window = nil
}

// arrived takes a frame that the source host forwards, and its reference.
func (f *fabric) arrived(l *link, it item, now time.Time) {
	var p *port
	if seg := f.networks[it.net]; seg != nil {
		p = seg.guests[it.ctl.mac]
	}
	if p == nil || p.arrive.key != it.ctl.mig || p.arrive.peer != l.host {
		l.stats.dropsIn++ // discarded, or never reserved
		it.frame.release()
		return
	}
	if it.ctl.number <= p.arrive.sequence {
		it.frame.release() // sent again after the trunk broke
		return
	}
	p.arrive.sequence = it.ctl.number
	p.stats.Forwarded++
	f.accept(p, it.frame, now)
}

// open lets a reserved port's guest onto the network.
func (f *fabric) open(p *port, id inventory.MigrationID, now time.Time) error {
	f.mu.Lock()
	defer f.unlock()
	if err := p.present(); err != nil {
		return err
	}
	if p.mode != ModeReserved && p.arrive.id == id {
		return nil
	}
	if p.mode != ModeReserved || p.arrive.id != id {
		return fault.New(fault.Conflict, "port %s is %s and not reserved for migration %s", p.spec.ID, p.mode, id)
	}
	key := moveKey{mac: p.mac, mig: p.arrive.key}
	end, ended := p.seg.ended[key]
	p.moves = max(p.seg.count(p)+1, end.number)
	p.mode = ModeNormal
	p.seg.table[p.mac] = &entry{port: p, seen: now}
	if old := p.seg.moved[p.mac]; old != nil {
		f.unpark(p.seg, old, now)
	}
	p.seg.moved[p.mac] = &moved{mig: p.arrive.key, source: p.arrive.peer, target: f.host, number: p.moves, known: now}
	p.hand(p.backlog)
	p.backlog, p.bytes, p.patient = nil, 0, now.Add(patience)

	source := f.links[p.arrive.peer]
	waiting := source != nil && source.up // else nothing more can come from there
	if waiting {
		p.window = &window{origins: map[inventory.HostID]*origin{f.host: {acked: true}}, until: now.Add(flushWait)}
		source.tell(item{kind: kindFlush, net: p.seg.key, ctl: &control{mac: p.mac, mig: p.arrive.key, host: f.host, target: f.host}})
	}
	told := item{kind: kindMoved, net: p.seg.key, ctl: &control{mac: p.mac, mig: p.arrive.key, number: p.moves, host: p.arrive.peer}}
	for _, l := range f.links {
		if waiting && l.up {
			p.window.origins[l.host] = &origin{}
		}
		l.tell(told)
	}
	if waiting && !ended {
		p.gateUntil = now.Add(flushWait)
	} else {
		p.openGate()
	}
	p.announce = now
	f.announceDue(p, now)
	f.timers()
	return nil
}

// announceDue sends the announcements that are due.
func (f *fabric) announceDue(p *port, now time.Time) {
	for !p.announce.IsZero() && !now.Before(p.announce) {
		fr := rarp(p.mac)
		f.route(p.seg, f.host, p, nil, fr, now)
		fr.release()
		p.announced++
		if p.announced == len(announceAt) {
			p.announce = time.Time{}
			return
		}
		p.announce = p.announce.Add(announceAt[p.announced] - announceAt[p.announced-1])
	}
}

// deadline returns when tickPort is due for this port; zero is never.
func (p *port) deadline() time.Time {
	due := p.announce
	earlier := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	earlier(p.gateUntil)
	if p.window != nil {
		earlier(p.window.until)
	}
	if p.committed {
		earlier(p.until)
	}
	return due
}

func (f *fabric) tickPort(p *port, now time.Time) {
	if p.window != nil && !now.Before(p.window.until) {
		f.log.Warn("flush missing, direct frames released", slog.String("port", p.spec.ID), slog.Int("origins", len(p.window.origins)))
		f.settleAll(p, now)
	}
	if !p.gateUntil.IsZero() && !now.Before(p.gateUntil) {
		p.openGate()
	}
	if p.mode == ModeNormal || p.mode == ModeHeld {
		f.announceDue(p, now)
	}
	if p.committed && !now.Before(p.until) {
		f.log.Warn("flush missing, forwarding ended", slog.String("port", p.spec.ID), slog.String("host", string(p.leave.peer)))
		f.removePort(p)
	}
}
