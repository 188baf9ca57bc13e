package vnet

import (
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

// A tracked port counts the frames that its guest takes, and no others; those that the guest did not get before it
// stopped go to the target first, ahead of what was queued.
func TestTrackedFramesGoAgain(t *testing.T) {
	nodes := mesh(t, 2)
	ctx := t.Context()
	a, b := nodes[0], nodes[1]
	a.station("guest", guestMAC.String())
	s := a.station("sender", macA)
	group, other := mac{0x33, 0x33, 0, 0, 0, 1}, mac{0x33, 0x33, 0, 0, 0, 2}
	must(t, b.Reserve(ctx, b.spec("guest", guestMAC.String()), "mig", a.host))
	arrived := b.attach("guest", guestMAC.String())

	must(t, a.Track(ctx, "guest", Filter{Addresses: []string{group.String()}}))
	s.send(guestMAC, 0) // queued while held, and counted when it is written
	must(t, a.Unhold(ctx, "guest"))
	s.send(other, 1) // the guest's card drops it
	s.send(group, 2)
	s.send(broadcast, 3)
	s.send(guestMAC, 4)
	eventually(t, "four frames are counted", func() bool {
		n, err := a.Tracked(ctx, "guest")
		must(t, err)
		return n == 4
	})
	must(t, a.Hold(ctx, "guest", drainWait))
	s.send(guestMAC, 5)
	eventually(t, "a frame is queued", func() bool {
		p, err := a.Port(ctx, "guest")
		must(t, err)
		return p.Queued == 1
	})
	if n, err := a.Tracked(ctx, "guest"); err != nil || n != 4 {
		t.Fatalf("a held port has counted on: %d, %v", n, err)
	}
	must(t, a.Forward(ctx, "guest", b.host, "mig", 2)) // its receive ring took two of the four
	must(t, b.Open(ctx, "guest", "mig"))
	must(t, a.Commit(ctx, "guest", "mig"))
	for _, n := range []int{3, 4, 5} {
		arrived.expect(s.mac, n)
	}
	if _, err := a.Tracked(ctx, "none"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("a port that is not there: %v", err)
	}
}

// However many frames are asked for again, the port has no more than it remembers.
func TestTrackRemembersTheLastOnly(t *testing.T) {
	r := recent{}
	r.begin(guestMAC, Filter{})
	for i := range recentMax + 10 {
		f := numbered(guestMAC, mac{2, 1}, i)
		r.note(f)
		f.release()
	}
	if n := r.written(); n != recentMax+10 {
		t.Fatalf("counted %d", n)
	}
	got := r.last(1 << 20)
	if len(got) != recentMax || got[0].data[17] != 10 { // the number, modulo 256
		t.Fatalf("%d frames from number %d on, want the last %d", len(got), got[0].data[17], recentMax)
	}
	for _, f := range got {
		f.release()
	}
	if got := r.last(-1); len(got) != 0 {
		t.Fatalf("%d frames for a negative number", len(got))
	}
	r.end()
	if got := r.last(1); len(got) != 0 {
		t.Fatal("frames remembered after the end")
	}
}
