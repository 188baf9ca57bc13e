package stream

import "encoding/binary"

// CounterPort is the guest's UDP port of the numbered packets; Counter* is how one looks behind its UDP header.
const (
	CounterPort = 20
	CounterSize = 64 // bytes: a mark, the run and the number, and zeros
)

// counterMark begins every numbered packet.
const counterMark = 0x47574e42 // GWNB

// PutCounter writes the packet with that number of a run to b, which has CounterSize bytes.
func PutCounter(b []byte, run uint32, number uint64) {
	binary.BigEndian.PutUint32(b, counterMark)
	binary.BigEndian.PutUint32(b[4:], run)
	binary.BigEndian.PutUint64(b[8:], number)
}

// ReadCounter returns the number in a packet of the run; false for what is none.
func ReadCounter(b []byte, run uint32) (number uint64, ok bool) {
	if len(b) < CounterSize || binary.BigEndian.Uint32(b) != counterMark || binary.BigEndian.Uint32(b[4:]) != run {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[8:]), true
}

const (
	tallyWindow = 1 << 17 // numbers looked back at: 13 s at 10,000 a second
	holesMax    = 24      // of which a Tally remembers where they began
)

// Hole is a run of numbers that did not come when they should have.
type Hole struct {
	First uint64 `json:"first"`
	Count uint64 `json:"count"`
}

// Tally checks that the numbers 0, 1, 2 … arrive once each and in order. The zero value is ready; one goroutine at a time may use it.
type Tally struct {
	Next     uint64 // one more than the highest number so far
	Received uint64 // packets, whatever their numbers
	Missing  uint64 // numbers below Next that have not come
	Doubled  uint64 // packets whose number had come before, or is so old that nobody knows
	Late     uint64 // packets that came after one with a higher number
	Holes    []Hole // the first holesMax times that numbers were skipped, late ones included
	seen     []uint64
}

// Count takes the next packet's number.
func (t *Tally) Count(number uint64) {
	if t.seen == nil {
		t.seen = make([]uint64, tallyWindow/64)
	}
	t.Received++
	if number >= t.Next {
		if skipped := number - t.Next; skipped > 0 {
			t.Missing += skipped
			if len(t.Holes) < holesMax {
				t.Holes = append(t.Holes, Hole{t.Next, skipped})
			}
		}
		for n := max(t.Next, number-min(number, tallyWindow-1)); n < number; n++ {
			t.seen[n%tallyWindow/64] &^= 1 << (n % 64)
		}
		t.seen[number%tallyWindow/64] |= 1 << (number % 64)
		t.Next = number + 1
		return
	}
	word, bit := &t.seen[number%tallyWindow/64], uint64(1)<<(number%64)
	if t.Next-number > tallyWindow || *word&bit != 0 {
		t.Doubled++
		return
	}
	*word |= bit
	t.Late++
	t.Missing--
}
