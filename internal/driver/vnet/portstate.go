package vnet

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// port is the fabric's view of a port. All fields are guarded by the fabric's lock, except out, which has its own, and
// spec and mac, which never change.
type port struct {
	spec PortSpec
	mac  mac
	seg  *segment // nil once removed
	mode PortMode
	out  *queue // for the client

	// gate is not nil while frames from the client must wait: the port is reserved, or the guest's last frames from the
	// source host have not all passed yet. It is closed when that ends.
	gate      chan struct{}
	gateUntil time.Time

	connected bool
	keepUntil time.Time // without a client frames are kept until then

	// A migration takes processor time from the guest that migrates, and an arrived one may be slow at first. Its queue may grow as the backlog
	// may, from Track until patience after the end.
	moving  bool
	patient time.Time

	// The switchover, see leave.go (source) and arrive.go (target).
	moves     uint64                    // how often the guest's address has moved
	backlog   []*frame                  // held: frames since Hold. forwarding: copies. reserved: forwarded frames
	bytes     int                       // memory of the backlog
	leave     passage                   // held and forwarding
	again     int                       // forwarding: copies at the start that the own client was given before
	uncopied  uint64                    // forwarding: frames behind the copies, for which there was no room
	committed bool                      // forwarding: there are no copies any more
	until     time.Time                 // forwarding, committed: when the port goes at the latest
	flushed   map[inventory.HostID]bool // forwarding: origins whose frames the target has directly
	arrive    passage                   // reserved and opened
	window    *window                   // opened: orders direct frames behind forwarded ones
	announced int                       // opened: how many announcements were made
	announce  time.Time                 // opened: when the next is due; zero: none

	stats PortStats
	io    *socket // the port's socket; nil in tests of the fabric alone and for gateways
}

// passage is one migration of the port's guest, as seen from one end.
type passage struct {
	id   inventory.MigrationID
	key  migKey
	peer inventory.HostID // the other end
	// sequence is, at the source, the number of the next frame to forward; at the target, of the last one accepted.
	sequence uint64
	first    uint64 // at the source, the number of the first copy
}

// addPort puts a new port on its network, open or reserved. It must not exist.
func (f *fabric) addPort(p *port, now time.Time) error {
	seg := f.networks[keyOfNetwork(p.spec.Network)]
	if seg == nil {
		return fault.New(fault.NotFound, "port %s: network %s is not on this host: set it first", p.spec.ID, p.spec.Network)
	}
	if !p.mac.zero() {
		if other := seg.guests[p.mac]; other != nil {
			return fault.New(fault.Exists, "port %s: address %s belongs to port %s already", p.spec.ID, p.mac, other.spec.ID)
		}
		seg.guests[p.mac] = p
	}
	p.seg = seg
	p.keepUntil = now.Add(reconnectGrace)
	seg.ports[p] = true
	f.ports[p.spec.ID] = p
	if p.mode != ModeReserved && p.mode != ModeForwarding && !p.mac.zero() {
		seg.table[p.mac] = &entry{port: p, seen: now} // reachable before its first frame
	}
	return nil
}

// present returns fault.NotFound for a port that has been removed.
func (p *port) present() error {
	if p.seg == nil {
		return fault.New(fault.NotFound, "port %s: removed from this switch", p.spec.ID)
	}
	return nil
}

// removePort takes the port off its network and drops what it holds.
func (f *fabric) removePort(p *port) {
	if p.seg == nil {
		return
	}
	for m, e := range p.seg.table {
		if e.port == p {
			delete(p.seg.table, m)
		}
	}
	if p.seg.guests[p.mac] == p {
		delete(p.seg.guests, p.mac)
	}
	delete(p.seg.ports, p)
	delete(f.ports, p.spec.ID)
	p.stats.DropsOut += uint64(p.out.len())
	if p.mode != ModeReserved { // what it was sent the source has, too
		p.stats.DropsOut += uint64(len(p.backlog))
	}
	p.seg.dropsIn += p.stats.DropsIn
	p.seg.dropsOut += p.stats.DropsOut
	p.dropBacklog()
	if p.io != nil {
		p.io.recent.end()
	}
	p.dropWindow()
	releaseAll(p.out.drain())
	p.openGate()
	p.seg = nil
	f.gone = append(f.gone, p)
}

// send queues a frame for the client. A burst is of frames that a switchover has kept and that come all at once.
func (p *port) send(fr *frame, burst bool, now time.Time) {
	size := uint64(len(fr.data))
	if !p.connected && now.After(p.keepUntil) {
		fr.release()
		p.stats.DropsOut++
		return
	}
	extra := 0
	if p.moving || burst || now.Before(p.patient) {
		extra = holdMax
	}
	if !p.out.pushBeyond(item{kind: kindData, frame: fr}, extra) {
		p.stats.DropsOut++
		return
	}
	p.stats.FramesOut++
	p.stats.BytesOut += size
}

// room reports whether the backlog, which is bounded, can take the frame.
func (p *port) room(fr *frame) bool {
	return len(p.backlog) < holdMax && p.bytes+fr.size() <= holdBytes
}

// keep appends a frame to the backlog, or drops it when there is no room.
func (p *port) keep(fr *frame) {
	if !p.room(fr) {
		fr.release()
		p.stats.DropsOut++
		return
	}
	p.backlog = append(p.backlog, fr)
	p.bytes += fr.size()
}

// hand queues the whole backlog for the client, in order and without a drop.
func (p *port) hand(frames []*frame) {
	items := make([]item, len(frames))
	for i, fr := range frames {
		items[i] = item{kind: kindData, frame: fr}
		p.stats.FramesOut++
		p.stats.BytesOut += uint64(len(fr.data))
	}
	p.out.boost(items)
}

func (p *port) dropBacklog() {
	for _, fr := range p.backlog {
		fr.release()
	}
	p.backlog, p.bytes = nil, 0
}

// openGate lets frames from the client pass.
func (p *port) openGate() {
	if p.gate != nil {
		close(p.gate)
		p.gate, p.gateUntil = nil, time.Time{}
	}
}

// attach notes whether the port has a client. Only the newest client counts.
func (f *fabric) attach(p *port, connected bool, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.connected = connected
	if !connected {
		p.keepUntil = now.Add(reconnectGrace)
	}
}

func (p *port) status() PortStatus {
	way := p.arrive
	if p.leave.id != "" {
		way = p.leave
	}
	return PortStatus{
		PortSpec: p.spec, Mode: p.mode, Migration: way.id, Host: way.peer, Connected: p.connected,
		Queued: len(p.backlog) + p.out.len(), Stats: p.stats,
	}
}

// dropped counts frames that were queued for the client and could not be written.
func (f *fabric) dropped(p *port, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.stats.DropsOut += uint64(n)
}
