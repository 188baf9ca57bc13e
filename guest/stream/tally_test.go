package stream_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/guest/stream"
)

// A tally of numbers in any order, with any losses and repeats, agrees with one that remembers all of them.
func TestTallyCountsEachPacketForWhatItIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tally stream.Tally
		came := map[uint64]bool{}
		var highest, doubled, late uint64
		var received int
		for _, n := range rapid.SliceOfN(rapid.Uint64Range(0, 60), 0, 80).Draw(t, "numbers") {
			tally.Count(n)
			received++
			switch {
			case came[n]:
				doubled++
			case n < highest:
				late++
			}
			came[n] = true
			highest = max(highest, n+1)
		}
		if tally.Next != highest || tally.Doubled != doubled || tally.Late != late || tally.Missing != highest-uint64(len(came)) ||
			tally.Received != uint64(received) {
			t.Fatalf("%+v, want next %d, missing %d, doubled %d, late %d", tally, highest, highest-uint64(len(came)), doubled, late)
		}
	})
}

// Numbers wander through the window many times over, and a skip longer than the window forgets what lies before it.
func TestTallyLooksBackAWindow(t *testing.T) {
	var tally stream.Tally
	const many = 1 << 19
	for n := range uint64(many) {
		if n%1000 != 7 {
			tally.Count(n)
		}
	}
	if want := uint64(many/1000 + 1); tally.Missing != want || tally.Doubled+tally.Late != 0 || tally.Holes[0] != (stream.Hole{First: 7, Count: 1}) {
		t.Fatalf("missing %d of %d, doubled %d, late %d, first hole %+v", tally.Missing, want, tally.Doubled, tally.Late, tally.Holes[0])
	}
	tally.Count(many - 1000 - many%1000 + 7)
	tally.Count(many - 1000 - many%1000 + 7)
	tally.Count(0) // nobody knows any more
	if tally.Late != 1 || tally.Doubled != 2 {
		t.Fatalf("late %d, doubled %d, want 1 and 2", tally.Late, tally.Doubled)
	}
	tally.Count(4 * many)
	tally.Count(4*many - 5)
	if tally.Late != 2 {
		t.Fatalf("late %d after a long skip, want 2", tally.Late)
	}
}

func TestOnlyPacketsOfTheRunCount(t *testing.T) {
	b := make([]byte, stream.CounterSize)
	stream.PutCounter(b, 3, 1<<40)
	if n, ok := stream.ReadCounter(b, 3); n != 1<<40 || !ok {
		t.Errorf("%d, %v", n, ok)
	}
	if _, ok := stream.ReadCounter(b, 4); ok {
		t.Error("a packet of another run counts")
	}
	if _, ok := stream.ReadCounter(b[:20], 3); ok {
		t.Error("a packet cut short counts")
	}
}
