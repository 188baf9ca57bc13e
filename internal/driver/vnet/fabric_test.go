package vnet

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// A world is several fabrics whose trunks are queues that the test empties one message at a time, so that every
// interleaving that FIFO channels allow can happen. On each host sits a sender; one guest migrates.
type world struct {
	t       *rapid.T
	now     time.Time
	hosts   []inventory.HostID
	fabrics map[inventory.HostID]*fabric
	senders map[inventory.HostID]*port
	guests  map[inventory.HostID]*port // the guest's port where it has one

	runs    inventory.HostID // where the guest runs; empty while it is stopped
	pending []*frame         // what the guest has sent and its switch has not read
	sent    map[inventory.HostID]int
	seen    map[inventory.HostID]int // frames of each sender that the guest has received
	told    map[inventory.HostID]int // frames that the guest has sent to each sender
	heard   map[inventory.HostID]int
	tries   int
	hasty   bool // the next migration does not wait for the ends of the last
}

const worldNetwork = inventory.NetworkID("blue")

var guestMAC = mac{0x52, 0x54, 0, 0, 0, 0x77}

func newWorld(t *rapid.T, hosts int) *world {
	w := &world{
		t: t, now: time.Unix(1_700_000_000, 0), fabrics: map[inventory.HostID]*fabric{},
		senders: map[inventory.HostID]*port{}, guests: map[inventory.HostID]*port{},
		sent: map[inventory.HostID]int{}, seen: map[inventory.HostID]int{},
		told: map[inventory.HostID]int{}, heard: map[inventory.HostID]int{},
	}
	for i := range hosts {
		w.hosts = append(w.hosts, inventory.HostID(fmt.Sprintf("host-%d", i+1)))
	}
	for i, h := range w.hosts {
		f := newBareFabric(h)
		seg := newSegment(worldNetwork)
		f.networks[seg.key] = seg
		for _, peer := range w.hosts {
			if peer != h {
				f.links[peer] = &link{host: peer, up: true, out: newQueue(trunkQueueMax)}
			}
		}
		w.fabrics[h] = f
		w.senders[h] = w.plug(h, "sender", mac{2, 0, 0, 0, 0, byte(i)}, ModeNormal)
	}
	w.runs = w.hosts[0]
	w.guests[w.runs] = w.plug(w.runs, "guest", guestMAC, ModeNormal)
	return w
}

func newBareFabric(h inventory.HostID) *fabric { return newFabric(h, slog.New(slog.DiscardHandler)) }

func (w *world) plug(h inventory.HostID, id string, m mac, mode PortMode) *port {
	p, err := newPort(PortSpec{ID: id, Network: worldNetwork, MAC: m.String()}, mode)
	if err != nil {
		w.t.Fatal(err)
	}
	p.connected = true
	w.fabrics[h].mu.Lock()
	defer w.fabrics[h].unlock()
	if err := w.fabrics[h].addPort(p, w.now); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func numbered(target, source mac, n int) *frame {
	f := newFrame(60)
	clear(f.data)
	copy(f.data, target[:])
	copy(f.data[6:], source[:])
	f.data[12], f.data[13] = 0x88, 0xb5 // for local experiments
	binary.BigEndian.PutUint32(f.data[14:], uint32(n))
	return f
}

// send has the sender of a host send its next frame to the guest, alone or flooded.
func (w *world) send(h inventory.HostID, flood bool) {
	target := guestMAC
	if flood {
		target = broadcast
	}
	w.fabrics[h].fromPort(w.senders[h], []*frame{numbered(target, w.senders[h].mac, w.sent[h])}, w.now)
	w.sent[h]++
}

// speak has the guest send its next frame to the sender of a host.
func (w *world) speak(h inventory.HostID) {
	w.pending = append(w.pending, numbered(w.senders[h].mac, guestMAC, w.told[h]))
	w.told[h]++
	w.pump()
}

// pump has the guest's switch read what the guest has sent, if its port lets it.
func (w *world) pump() {
	if w.runs == "" || len(w.pending) == 0 {
		return
	}
	w.pending, _ = w.fabrics[w.runs].fromPort(w.guests[w.runs], w.pending, w.now)
}

// carry moves one message from one host to another and reports whether there was one.
func (w *world) carry(from, to inventory.HostID) bool {
	it, ok := pop(w.fabrics[from].links[to].out)
	if !ok {
		return false
	}
	b := appendMessage(nil, it)
	it.frame.release()
	got, err := parseMessage(b[4:])
	if err != nil {
		w.t.Fatalf("message of kind %d does not survive the wire: %v", it.kind, err)
	}
	w.fabrics[to].fromLink(w.fabrics[to].links[from], []item{got}, w.now)
	return true
}

func pop(q *queue) (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.head == len(q.items) {
		return item{}, false
	}
	it := q.items[q.head]
	q.items[q.head] = item{}
	if q.head++; q.head == len(q.items) {
		q.items, q.head, q.limit = q.items[:0], 0, q.base
	}
	return it, true
}

// read has the guest read what its port has for it and checks it.
func (w *world) read() {
	if w.runs == "" {
		return
	}
	for {
		it, ok := pop(w.guests[w.runs].out)
		if !ok {
			return
		}
		w.check("guest", it.frame, w.seen, func(m mac) inventory.HostID { return w.hosts[m[5]] })
	}
}

// listen has the senders read; only frames of the guest count.
func (w *world) listen() {
	for _, h := range w.hosts {
		for {
			it, ok := pop(w.senders[h].out)
			if !ok {
				break
			}
			if it.frame.target() != w.senders[h].mac { // flooded
				it.frame.release()
				continue
			}
			w.check("sender at "+string(h), it.frame, w.heard, func(mac) inventory.HostID { return h })
		}
	}
}

func (w *world) check(who string, fr *frame, next map[inventory.HostID]int, of func(mac) inventory.HostID) {
	defer fr.release()
	if binary.BigEndian.Uint16(fr.data[12:]) == etherRARP || (who != "guest" && fr.source() != guestMAC) {
		return
	}
	h := of(fr.source())
	n := int(binary.BigEndian.Uint32(fr.data[14:]))
	if n != next[h] {
		w.t.Fatalf("%s got frame %d of %s, want %d", who, n, h, next[h])
	}
	next[h]++
}

// settle delivers everything that is on its way, without any time passing.
func (w *world) settle() {
	for moving := true; moving; {
		moving = false
		for _, a := range w.hosts {
			for _, b := range w.hosts {
				for a != b && w.carry(a, b) {
					moving = true
				}
			}
		}
		w.pump()
		w.read()
		w.listen()
	}
}

// jumble lets a random mixture of things happen.
func (w *world) jumble(steps int) {
	host := rapid.SampledFrom(w.hosts)
	for range rapid.IntRange(0, steps).Draw(w.t, "steps") {
		switch rapid.IntRange(0, 9).Draw(w.t, "do") {
		case 0, 1, 2:
			w.send(host.Draw(w.t, "sender"), rapid.IntRange(0, 3).Draw(w.t, "flood") == 0)
		case 3:
			if w.runs != "" && !w.hasty {
				w.speak(host.Draw(w.t, "to"))
			}
		case 4, 5, 6, 7:
			a, b := host.Draw(w.t, "from"), host.Draw(w.t, "to")
			for range rapid.IntRange(1, 8).Draw(w.t, "messages") {
				if a == b || !w.carry(a, b) {
					break
				}
			}
		case 8:
			w.read()
			w.listen()
		case 9: // the address ages out of a table
			f := w.fabrics[host.Draw(w.t, "forgets")]
			seg := f.networks[keyOfNetwork(worldNetwork)]
			if seg.guests[guestMAC] == nil {
				delete(seg.table, guestMAC)
			}
		}
	}
	w.pump()
}

// switchover moves the guest, or fails to, with everything else going on in between.
func (w *world) switchover(target inventory.HostID, abort bool) {
	t, source := w.t, w.runs
	id := inventory.MigrationID(fmt.Sprintf("mig-%d", w.tries))
	w.tries++
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	a, b := w.fabrics[source], w.fabrics[target]
	pa := w.guests[source]
	pb := w.plug(target, "guest", guestMAC, ModeReserved)
	w.guests[target] = pb
	pb.arrive = passage{id: id, key: keyOfMigration(id), peer: source}
	w.jumble(20)
	must(a.hold(pa))
	w.jumble(20)
	for len(w.pending) > 0 { // waitHeard: its last frames must be in before it forwards
		w.carry(rapid.SampledFrom(w.hosts).Filter(func(h inventory.HostID) bool { return h != source }).Draw(t, "end"), source)
		w.pump()
	}
	w.runs = ""
	w.jumble(10)
	w.now = w.now.Add(time.Millisecond)
	must(a.startForward(pa, target, id, nil, w.now))
	w.jumble(40)
	if abort {
		b.mu.Lock()
		b.removePort(pb)
		b.unlock()
		delete(w.guests, target)
		w.jumble(10)
		must(a.resume(pa, true, w.now))
		w.runs = source
		return
	}
	w.runs = target
	w.jumble(10) // it runs, but its port is not open yet
	must(b.open(pb, id, w.now))
	w.jumble(40)
	must(a.commit(pa, id, w.now))
	w.jumble(40)
	for pa.seg != nil { // the next migration waits for this, as a reservation on the source would
		progress := false
		for _, x := range w.hosts {
			for _, y := range w.hosts {
				progress = x != y && w.carry(x, y) || progress
			}
		}
		if !progress {
			t.Fatalf("%s still forwards and nothing is on its way", source)
		}
	}
	delete(w.guests, source)
	// Order over two moves needs the first one's END everywhere before the second one opens; a migration lasts far
	// longer than a trunk's latency. Hasty worlds, whose guest is silent, do without.
	for _, h := range w.hosts {
		for h != source && !w.hasty && w.carry(source, h) {
		}
	}
}

func (w *world) done() {
	w.settle()
	for _, h := range w.hosts {
		if w.seen[h] != w.sent[h] {
			w.t.Fatalf("guest got %d of %d frames of %s", w.seen[h], w.sent[h], h)
		}
		if w.heard[h] != w.told[h] {
			w.t.Fatalf("sender at %s got %d of the guest's %d frames", h, w.heard[h], w.told[h])
		}
		if p := w.guests[h]; p != nil && (p.window != nil || p.gate != nil || len(p.backlog) > 0) {
			w.t.Fatalf("port at %s still waits though everything has arrived", h)
		}
	}
}

// TestSwitchoverLosesNothing: whatever the interleaving of trunks, senders on every host and the steps of the switchover,
// every frame arrives once and in its sender's order, both ways, with no help from time limits.
func TestSwitchoverLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, rapid.IntRange(2, 4).Draw(t, "hosts"))
		w.hasty = rapid.Bool().Draw(t, "hasty")
		w.jumble(20)
		for range rapid.IntRange(1, 4).Draw(t, "migrations") {
			others := slices.DeleteFunc(slices.Clone(w.hosts), func(h inventory.HostID) bool { return h == w.runs })
			w.switchover(rapid.SampledFrom(others).Draw(t, "target"), rapid.IntRange(0, 2).Draw(t, "abort") == 0)
			w.jumble(20)
		}
		w.done()
	})
}
