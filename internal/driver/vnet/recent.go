package vnet

import (
	"context"
	"slices"
	"sync"

	"github.com/godwit-vm/godwit/internal/fault"
)

// What a tracked port remembers, in frames and in the memory that they take. On their way into QEMU can be one write of the switch (writeChunk), what the
// socket holds (socketRoom), QEMU's read buffer of 69 KB (QEMU 10.0, include/net/net.h, NET_BUFSIZE), 350 KB together, or 5,500 frames of 60 bytes; and
// what QEMU keeps for a guest that takes frames slower than they come, which has no bound: each frame that the guest takes lets QEMU
// read on (net/stream.c, net_stream_send_completed).
const (
	recentMax   = 16384
	recentBytes = 16 << 20
)

// Filter is what a guest's network card lets through besides its own address and broadcasts, as QEMU's query-rx-filter
// tells. A frame that it drops never reaches the guest's receive ring.
type Filter struct {
	Promiscuous  bool
	AllMulticast bool
	Addresses    []string // unicast and multicast, canonical
}

// recent remembers the last frames that were written to a port's client and that its guest takes, and counts them. A guest
// counts too, in its receive ring; the difference, when its vCPUs have stopped, is what QEMU read for nobody.
type recent struct {
	mu     sync.Mutex
	on     bool
	accept func(*frame) bool
	count  uint64
	frames []*frame // the last ones, oldest first
	bytes  int      // of them
}

// begin starts a new count.
func (r *recent) begin(own mac, filter Filter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
	r.on = true
	r.accept = func(fr *frame) bool {
		to := fr.target()
		return to == own || to == mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} || filter.Promiscuous || to.multicast() && filter.AllMulticast ||
			slices.Contains(filter.Addresses, to.String())
	}
}

// end stops counting and forgets.
func (r *recent) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
	r.on = false
}

func (r *recent) clear() {
	for _, fr := range r.frames {
		fr.release()
	}
	r.frames, r.bytes, r.count = nil, 0, 0
}

// note keeps a frame that is being written.
func (r *recent) note(fr *frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.on || !r.accept(fr) {
		return
	}
	r.count++
	r.frames = append(r.frames, fr.retain())
	r.bytes += fr.size()
	old := 0
	for ; len(r.frames)-old > recentMax || r.bytes > recentBytes; old++ {
		r.bytes -= r.frames[old].size()
		r.frames[old].release()
		r.frames[old] = nil
	}
	r.frames = r.frames[old:] // append makes room at the front again when it grows
}

// last returns references to the last n frames, or to as many as there are.
func (r *recent) last(n int) []*frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(max(n, 0), len(r.frames))
	kept := slices.Clone(r.frames[len(r.frames)-n:])
	for _, fr := range kept {
		fr.retain()
	}
	return kept
}

func (r *recent) written() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// Track holds the port as Hold does and begins to count the frames that are written to its client from now on; see
// Client.Track.
func (s *Switch) Track(ctx context.Context, id string, filter Filter) error {
	p, err := s.mustPort(id)
	if err != nil {
		return err
	}
	if p.mac.zero() {
		return fault.New(fault.Invalid, "port %s has no MAC address, so its frames cannot be tracked", id)
	}
	if err := s.Hold(ctx, id, drainWait); err != nil {
		return err
	}
	s.look(func() { p.moving = true })
	p.io.recent.begin(p.mac, filter)
	return nil
}

// Tracked returns how many frames were written since Track that the guest takes; see Client.Tracked.
func (s *Switch) Tracked(id string) (uint64, error) {
	p, err := s.mustPort(id)
	if err != nil {
		return 0, err
	}
	return p.io.recent.written(), nil
}
