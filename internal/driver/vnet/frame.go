package vnet

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/godwit-vm/godwit/internal/fault"
)

const (
	headerLen = 14 // Ethernet: target, source, type
	// frameMax is the largest frame carried: QEMU's own NET_BUFSIZE (include/net/net.h).
	frameMax   = 4096 + 65536
	smallFrame = 256  // holds what many frames a second are made of: a switchover keeps tens of thousands
	usualFrame = 2048 // holds a frame of the usual MTU; larger ones are allocated

	etherRARP = 0x8035
)

// mac is an Ethernet address.
type mac [6]byte

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func (m mac) String() string  { return net.HardwareAddr(m[:]).String() }
func (m mac) multicast() bool { return m[0]&1 != 0 }
func (m mac) zero() bool      { return m == mac{} }

// parseMAC reads a unicast address in canonical form; the empty string is the zero address.
func parseMAC(s string) (mac, error) {
	var m mac
	if s == "" {
		return m, nil
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(m) || hw[0]&1 != 0 {
		return m, fault.New(fault.Invalid, "%q is no unicast MAC address", s)
	}
	copy(m[:], hw)
	return m, nil
}

// frame is one Ethernet frame in a pooled buffer. It is shared by all queues that hold it: each holder owns one
// reference, and nobody writes to data once a second holder exists.
type frame struct {
	refs atomic.Int32
	data []byte
	buf  []byte // nil for frames that do not come from the pool
}

var (
	smallFrames = sync.Pool{New: func() any { return &frame{buf: make([]byte, smallFrame)} }}
	usualFrames = sync.Pool{New: func() any { return &frame{buf: make([]byte, usualFrame)} }}
)

// newFrame returns a frame of n bytes with one reference; its content is undefined.
func newFrame(n int) *frame {
	var f *frame
	switch {
	case n <= smallFrame:
		f = smallFrames.Get().(*frame)
		f.data = f.buf[:n]
	case n <= usualFrame:
		f = usualFrames.Get().(*frame)
		f.data = f.buf[:n]
	default:
		f = &frame{data: make([]byte, n)}
	}
	f.refs.Store(1)
	return f
}

// copyFrame returns a frame with a copy of b.
func copyFrame(b []byte) *frame {
	f := newFrame(len(b))
	copy(f.data, b)
	return f
}

func (f *frame) retain() *frame {
	f.refs.Add(1)
	return f
}

func (f *frame) release() {
	if f == nil {
		return
	}
	switch n := f.refs.Add(-1); {
	case n == 0 && len(f.buf) == smallFrame:
		smallFrames.Put(f)
	case n == 0 && f.buf != nil:
		usualFrames.Put(f)
	case n < 0:
		panic("vnet: frame released twice") // its buffer may already carry another frame: a bug, never a fault
	}
}

// size is the memory that the frame takes, in bytes.
func (f *frame) size() int { return max(len(f.buf), len(f.data)) }

func (f *frame) target() mac { return mac(f.data[0:6]) }
func (f *frame) source() mac { return mac(f.data[6:12]) }

// rarp returns the frame by which a guest's address is announced: a reverse ARP request of and for itself (RFC 903),
// the same that QEMU sends (net/announce.c).
func rarp(m mac) *frame {
	f := newFrame(60)
	clear(f.data)
	b := f.data
	copy(b[0:], broadcast[:])
	copy(b[6:], m[:])
	b[12], b[13] = etherRARP>>8, etherRARP&0xff
	copy(b[14:], []byte{0, 1, 8, 0, 6, 4, 0, 3}) // Ethernet, IPv4, lengths, request reverse
	copy(b[22:], m[:])
	copy(b[32:], m[:])
	return f
}
