package vnet

import (
	"log/slog"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// forwardLinger is how long a committed port goes on forwarding when flushes of peers are missing.
const forwardLinger = 3 * time.Second

// hold stops frames from reaching the client; what waits for it becomes the start of the backlog.
func (f *fabric) hold(p *port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := p.present(); err != nil {
		return err
	}
	switch p.mode {
	case ModeHeld:
	case ModeNormal:
		for _, it := range p.out.drain() {
			p.backlog = append(p.backlog, it.frame)
			p.bytes += it.frame.size()
			p.stats.FramesOut--
			p.stats.BytesOut -= uint64(len(it.frame.data))
		}
		p.mode = ModeHeld
	case ModeForwarding, ModeReserved:
		return fault.New(fault.Conflict, "port %s is %s, only a normal port can be held", p.spec.ID, p.mode)
	}
	return nil
}

// startForward sends the frames in again, the backlog, and all that follows, to the target's reserved port. It takes the
// references in again, unless it returns an error.
func (f *fabric) startForward(p *port, target inventory.HostID, id inventory.MigrationID, again []*frame, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := p.present(); err != nil {
		return err
	}
	if p.mode == ModeForwarding && p.leave.id == id && p.leave.peer == target {
		return nil
	}
	if p.mode != ModeHeld {
		return fault.New(fault.Conflict, "port %s is %s: hold it before it forwards", p.spec.ID, p.mode)
	}
	if p.mac.zero() {
		return fault.New(fault.Invalid, "port %s has no MAC address, so it cannot move: add it with one", p.spec.ID)
	}
	l := f.links[target]
	if l == nil || !l.up {
		return fault.New(fault.Unavailable, "port %s: no trunk to host %s: check that its switch runs and can be reached", p.spec.ID, target)
	}
	// The first number is later than that of any earlier attempt, also of a switch process that died.
	p.leave = passage{id: id, key: keyOfMigration(id), peer: target, first: uint64(now.UnixNano())}
	p.leave.sequence = p.leave.first
	p.mode, p.flushed, p.committed = ModeForwarding, map[inventory.HostID]bool{}, false
	copies := append(again, p.backlog...)
	p.backlog, p.bytes, p.again, p.uncopied = nil, 0, len(again), 0
	for _, fr := range copies {
		f.forward(p, fr)
	}
	end := item{kind: kindEnd, net: p.seg.key, ctl: &control{mac: p.mac, mig: p.leave.key, number: p.seg.count(p) + 1}}
	for _, peer := range f.links {
		peer.tell(end)
	}
	return nil
}

// count returns how often the port's address is known to have moved.
func (s *segment) count(p *port) uint64 {
	n := p.moves
	if mv := s.moved[p.mac]; mv != nil {
		n = max(n, mv.number)
	}
	return n
}

// forward sends one frame to the target and keeps a copy until Commit. It takes the frame's reference. While the trunk
// is down the copy is all there is; it is sent when the trunk is back.
func (f *fabric) forward(p *port, fr *frame) {
	number := p.leave.sequence
	p.leave.sequence++
	sent := false
	if l := f.links[p.leave.peer]; l != nil && l.up {
		sent = l.forward(p, number, fr.retain())
	}
	if !p.committed && uint64(len(p.backlog)) == number-p.leave.first && p.room(fr) {
		p.backlog = append(p.backlog, fr)
		p.bytes += fr.size()
		return
	}
	if !p.committed {
		p.uncopied++
	}
	fr.release()
	if !sent {
		p.stats.DropsOut++
	}
}

func (l *link) forward(p *port, number uint64, fr *frame) bool {
	size := uint64(len(fr.data))
	ctl := &control{mac: p.mac, mig: p.leave.key, number: number}
	if !l.out.pushBeyond(item{kind: kindForward, net: p.seg.key, frame: fr, ctl: ctl}, holdMax) {
		l.stats.dropsOut++
		return false
	}
	l.stats.framesOut++
	l.stats.bytesOut += size
	p.stats.Forwarded++
	return true
}

// resume takes a held or forwarding port back to normal and hands it everything since Hold, in order.
func (f *fabric) resume(p *port, forwarding bool, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := p.present(); err != nil {
		return err
	}
	switch {
	case p.mode == ModeNormal:
		if forwarding {
			p.rest(now)
		}
		return nil
	case p.mode == ModeReserved, p.mode == ModeForwarding && !forwarding:
		return fault.New(fault.Conflict, "port %s is %s, not held: abort or discard it", p.spec.ID, p.mode)
	case p.committed:
		return fault.New(fault.Conflict, "port %s has been committed: its guest runs at host %s", p.spec.ID, p.leave.peer)
	}
	// The client was given the first again frames before: it goes on with what it had in hand.
	again := min(p.again, len(p.backlog))
	for _, fr := range p.backlog[:again] {
		fr.release()
	}
	p.hand(p.backlog[again:])
	p.stats.DropsOut += p.uncopied // the target had them, and will never run the guest
	p.backlog, p.bytes, p.flushed, p.leave, p.again, p.uncopied = nil, 0, nil, passage{}, 0, 0
	p.mode = ModeNormal
	if forwarding {
		p.rest(now)
	}
	if !p.mac.zero() {
		p.seg.table[p.mac] = &entry{port: p, seen: now}
	}
	return nil
}

// rest ends a migration's hold on the guest's port at the source.
func (p *port) rest(now time.Time) {
	if p.moving {
		p.moving, p.patient = false, now.Add(patience)
	}
	if p.io != nil {
		p.io.recent.end()
	}
}

// commit drops the copies. The port leaves when nothing more can come for it.
func (f *fabric) commit(p *port, id inventory.MigrationID, now time.Time) error {
	f.mu.Lock()
	defer f.unlock()
	if p.seg == nil {
		return nil // gone meanwhile
	}
	if p.mode != ModeForwarding || p.leave.id != id {
		return fault.New(fault.Conflict, "port %s is %s and does not forward for migration %s: nothing to commit", p.spec.ID, p.mode, id)
	}
	if p.committed {
		return nil
	}
	p.committed, p.until = true, now.Add(forwardLinger)
	p.dropBacklog()
	f.leaveIfFlushed(p)
	f.timers()
	return nil
}

// leaveIfFlushed removes a committed port once every origin sends to the target.
func (f *fabric) leaveIfFlushed(p *port) {
	if !p.committed || p.mode != ModeForwarding || !p.flushed[f.host] {
		return
	}
	for _, l := range f.links {
		if l.up && !p.flushed[l.host] {
			return
		}
	}
	f.removePort(p)
}

// passFlush notes at the source that an origin's frames end here, and tells the target so behind them.
func (f *fabric) passFlush(l *link, it item) {
	c := it.ctl
	if c.host != l.host {
		f.log.Warn("flush of another host ignored", slog.String("peer", string(l.host)), slog.String("origin", string(c.host)))
		return
	}
	f.pass(f.leaving(it), it)
}

// leaving returns the port that forwards for the migration of a message, or nil.
func (f *fabric) leaving(it item) *port {
	if seg := f.networks[it.net]; seg != nil {
		if p := seg.guests[it.ctl.mac]; p != nil && p.mode == ModeForwarding && p.leave.key == it.ctl.mig {
			return p
		}
	}
	return nil
}

// turned reports whether an origin's frames for the guest, from now on, reach its target directly.
func (p *port) turned(origin inventory.HostID) bool {
	if p.mode != ModeForwarding {
		return false
	}
	if p.window != nil {
		if o := p.window.origins[origin]; o != nil {
			return o.passing != nil
		}
	}
	return p.flushed[origin]
}

// pass sends an origin's flush on to the target, behind all its frames. p is the forwarding port, or nil.
func (f *fabric) pass(p *port, it item) {
	if p != nil && p.window != nil && p.window.origins[it.ctl.host] != nil {
		// The guest has hardly arrived and leaves again: frames of this origin still wait to be forwarded.
		p.window.origins[it.ctl.host].passing = &it
		return
	}
	if target := f.links[it.ctl.target]; target != nil {
		target.tell(it)
	}
	if p != nil {
		p.flushed[it.ctl.host] = true
		f.leaveIfFlushed(p)
	}
}

// resend gives a trunk that has come back what a switchover needs it to know.
func (f *fabric) resend(p *port, l *link) {
	switch {
	case p.mode == ModeForwarding && p.leave.peer == l.host:
		for i, fr := range p.backlog { // the target drops those that it has
			l.forward(p, p.leave.first+uint64(i), fr.retain())
		}
	case p.moves > 0 && (p.mode == ModeNormal || p.mode == ModeHeld):
		// Without a source: nothing is on its way over another host any more.
		l.tell(item{kind: kindMoved, net: p.seg.key, ctl: &control{mac: p.mac, mig: p.arrive.key, number: p.moves}})
	}
}
