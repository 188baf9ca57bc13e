//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/guest/stream"
)

const (
	packetTick   = 2 * time.Millisecond // between two looks at the socket: a wake-up for each packet would take an emulated processor whole
	packetBatch  = 64                   // packets for one system call
	packetBuffer = 48 << 20             // of the socket: some 50,000 packets, as the kernel counts
	packetRate   = 100_000              // a second, at most
	burstMax     = 128                  // packets that a sender which fell behind sends at once
)

// packets is the run of numbered packets, at most one. Its methods may be called by many goroutines.
type packets struct {
	mu      sync.Mutex
	fd      int // 0: no run yet
	run     uint32
	rate    int // 0: sends nothing
	began   time.Time
	sent    uint64
	tally   stream.Tally
	longest time.Duration
	ended   chan struct{} // closed by the loop of this run
	stop    bool
	err     error // that ended the loop
}

// answer begins or ends a run, or only tells.
func (p *packets) answer(r control.Request) (control.Packets, error) {
	_, stop := r.Args["stop"]
	switch {
	case len(r.Args) == 0:
	case stop:
		p.mu.Lock()
		p.rate = 0
		p.mu.Unlock()
	default:
		if err := p.start(r); err != nil {
			return control.Packets{}, err
		}
	}
	return p.counts()
}

func (p *packets) start(r control.Request) error {
	if err := allowed(r, "run", "rate", "to"); err != nil {
		return err
	}
	run, err := strconv.ParseUint(r.Args["run"], 10, 32)
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	rate, err := strconv.Atoi(r.Args["rate"])
	if err != nil || rate < 0 || rate > packetRate {
		return fmt.Errorf("rate %q is no number from 0 to %d", r.Args["rate"], packetRate)
	}
	to, err := netip.ParseAddrPort(r.Args["to"])
	if err != nil || !to.Addr().Is4() {
		return fmt.Errorf("to=%q is no IPv4 address and port", r.Args["to"])
	}
	p.end()
	fd, err := packetSocket(to)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fd, p.run, p.rate, p.began, p.sent, p.tally = fd, uint32(run), rate, time.Now(), 0, stream.Tally{}
	p.longest, p.stop, p.err, p.ended = 0, false, nil, make(chan struct{})
	go p.loop(p.ended) // until end
	return nil
}

// end ends the run there is and waits for it.
func (p *packets) end() {
	p.mu.Lock()
	ended := p.ended
	p.stop = true
	p.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

func packetSocket(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		// The kernel's own bound for all of UDP is some 30 MB in a guest this small.
		os.WriteFile("/proc/sys/net/ipv4/udp_mem", []byte("20000 25000 30000"), 0), // pages
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer),
		unix.Bind(fd, &unix.SockaddrInet4{Port: stream.CounterPort}),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
	)
	if err != nil {
		_ = unix.Close(fd) // nothing was written to it
		return 0, err
	}
	return fd, nil
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// batch is what one system call sends or receives.
type batch struct {
	messages [packetBatch]message
	vectors  [packetBatch]unix.Iovec
	packets  [packetBatch][stream.CounterSize]byte
}

func newBatch() *batch {
	b := &batch{}
	for i := range b.messages {
		b.vectors[i].Base = &b.packets[i][0]
		b.vectors[i].SetLen(stream.CounterSize)
		b.messages[i].header.Iov, b.messages[i].header.Iovlen = &b.vectors[i], 1
	}
	return b
}

// call moves at most n packets without waiting and returns how many.
func (b *batch) call(trap uintptr, fd, n int) (int, error) {
	done, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	switch errno { //nolint:exhaustive // every other error ends the run
	case 0:
		return int(done), nil
	case unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ECONNREFUSED, unix.EHOSTUNREACH:
		return 0, nil // later; the other end may not be there yet
	}
	return 0, errno
}

// loop receives and sends at each tick, on a thread of its own.
func (p *packets) loop(ended chan struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(ended)
	in, out := newBatch(), newBatch()
	last := time.Now()
	for {
		now := time.Now()
		p.mu.Lock()
		p.longest, last = max(p.longest, now.Sub(last)), now
		err := errors.Join(p.receive(in), p.send(out, now))
		stop := p.stop || err != nil
		if stop {
			p.err = err
			_ = unix.Close(p.fd) // only datagrams
			p.fd = 0
		}
		p.mu.Unlock()
		if stop {
			return
		}
		pause := unix.NsecToTimespec(int64(packetTick))
		_ = unix.Nanosleep(&pause, nil) // a signal ends it early
	}
}

func (p *packets) receive(b *batch) error {
	for {
		n, err := b.call(unix.SYS_RECVMMSG, p.fd, packetBatch)
		for i := range n {
			if number, ok := stream.ReadCounter(b.packets[i][:b.messages[i].length], p.run); ok {
				p.tally.Count(number)
			}
		}
		if n < packetBatch || err != nil {
			return err
		}
	}
}

// send sends what is due. Numbers that the kernel does not take wait for the next tick.
func (p *packets) send(b *batch, now time.Time) error {
	if p.rate == 0 {
		return nil
	}
	due := uint64(now.Sub(p.began).Seconds()*float64(p.rate)) - p.sent
	due = min(due, burstMax)
	for due > 0 {
		want := min(int(due), packetBatch)
		for i := range want {
			stream.PutCounter(b.packets[i][:], p.run, p.sent+uint64(i))
		}
		n, err := b.call(unix.SYS_SENDMMSG, p.fd, want)
		p.sent += uint64(n)
		due -= uint64(n)
		if n < want || err != nil {
			return err
		}
	}
	return nil
}

func (p *packets) counts() (control.Packets, error) {
	card, err := cardDrops()
	if err != nil {
		return control.Packets{}, err
	}
	udp, err := udpCounters()
	if err != nil {
		return control.Packets{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tally
	return control.Packets{
		Sent: p.sent, LoopMS: p.longest.Milliseconds(), Received: t.Received, Next: t.Next, Missing: t.Missing, Doubled: t.Doubled, Late: t.Late,
		SocketDrops: udp["InErrors"], CardDrops: card,
		Holes: append([]stream.Hole(nil), t.Holes...),
	}, p.err
}

// cardDrops adds up what the card's driver has dropped.
func cardDrops() (uint64, error) {
	var sum uint64
	for _, name := range []string{"rx_dropped", "rx_errors", "rx_missed_errors", "tx_dropped", "tx_errors"} {
		text, err := os.ReadFile("/sys/class/net/" + nic + "/statistics/" + name)
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// udpCounters returns the kernel's counters of UDP (proc(5), /proc/net/snmp).
func udpCounters() (map[string]uint64, error) {
	text, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] != "Udp:":
		case names == nil:
			names = words
		default:
			counters := map[string]uint64{}
			for i := 1; i < min(len(names), len(words)); i++ {
				if counters[names[i]], err = strconv.ParseUint(words[i], 10, 64); err != nil {
					return nil, err
				}
			}
			return counters, nil
		}
	}
	return nil, errors.New("/proc/net/snmp does not count UDP")
}
