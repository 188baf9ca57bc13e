package packets

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/guest/stream"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

const (
	stationPort = 4000
	sendEvery   = time.Millisecond
	catchUp     = 4 // times its rate that a sender goes which fell behind
)

// station is the other end: it sends numbered packets to the guest at a rate and counts those of the same run that come from it.
type station struct {
	wire wire
	run  uint32
	all  sync.WaitGroup
	stop context.CancelFunc

	mu      sync.Mutex
	rate    int // 0: sends nothing
	began   time.Time
	sent    uint64
	behind  time.Duration // longest time in which the sender did not get to send
	tally   stream.Tally
	problem error
}

// wire carries UDP payloads between the station and the guest.
type wire interface {
	// send sends the packets of a run with n numbers from first on.
	send(run uint32, first uint64, n int) error
	// receive returns the next payload; it is good until the next call.
	receive() ([]byte, error)
	Close() error
}

func newStation(ctx context.Context, w wire, run uint32) *station {
	s := &station{wire: w, run: run}
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.all.Go(func() {
		<-ctx.Done()
		_ = w.Close() // ends the receiver
	})
	s.all.Go(func() { s.receive(ctx) })
	s.all.Go(func() { s.send(ctx) })
	return s
}

// close ends the station.
func (s *station) close() {
	s.stop()
	s.all.Wait()
}

// setRate begins to send at that many packets a second, or ends it with 0.
func (s *station) setRate(rate int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate, s.began = rate, time.Now()
}

func (s *station) counts() (sent uint64, tally stream.Tally, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.tally, s.problem
}

func (s *station) fail(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil && s.problem == nil {
		s.problem = err
	}
}

func (s *station) receive(ctx context.Context) {
	for {
		b, err := s.wire.receive()
		if err != nil {
			s.fail(ctx, fmt.Errorf("station receives: %w", err))
			return
		}
		if number, ok := stream.ReadCounter(b, s.run); ok {
			s.mu.Lock()
			s.tally.Count(number)
			s.mu.Unlock()
		}
	}
}

func (s *station) send(ctx context.Context) {
	tick := time.NewTicker(sendEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		s.mu.Lock()
		if s.rate == 0 {
			last = now
			s.mu.Unlock()
			continue
		}
		s.behind, last = max(s.behind, now.Sub(last)), now
		first := s.sent
		due := uint64(now.Sub(s.began).Seconds()*float64(s.rate)) - first
		n := int(min(due, max(1, uint64(catchUp*float64(s.rate)*sendEvery.Seconds()))))
		s.sent += uint64(n)
		s.mu.Unlock()
		if err := s.wire.send(s.run, first, n); err != nil {
			s.fail(ctx, fmt.Errorf("station sends: %w", err))
			return
		}
	}
}

// cable is a port of a host's switch, with frames made by hand: no network stack of ours may drop any.
type cable struct {
	conn      net.Conn
	in        *bufio.Reader
	writing   sync.Mutex
	mac       net.HardwareAddr
	ip, guest netip.Addr
	met       bool // the guest has answered
	out       []byte
	packet    [ethLen + ipLen + udpLen + stream.CounterSize]byte
}

const (
	ethLen, ipLen, udpLen = 14, 20, 8
	arpLen                = 28
	frameMax              = 70 << 10
)

// plugIn adds a port for the station to the host's switch and attaches to it.
func plugIn(ctx context.Context, h *lab.Host, guestMAC string, guest netip.Addr) (*cable, error) {
	mac := inventory.NewMAC()
	spec := vnet.PortSpec{ID: "station", Network: lab.Network, Socket: filepath.Join(h.Run, "ports", "station.sock")}
	switches := vnet.NewClient(filepath.Join(h.Run, "switch.sock"))
	defer switches.Close()
	if err := lab.Until(ctx, 10*time.Second, func() error { return switches.AddPort(ctx, spec) }); err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", spec.Socket)
	if err != nil {
		return nil, err
	}
	c := &cable{conn: conn, in: bufio.NewReaderSize(conn, 1<<20), guest: guest}
	if c.mac, err = net.ParseMAC(mac); err != nil {
		return nil, err
	}
	subnet := netip.MustParsePrefix(lab.Subnet)
	c.ip = subnet.Addr()
	for range 250 { // an address that DHCP gives by its last numbers rarely
		c.ip = c.ip.Next()
	}
	if c.ip == guest {
		c.ip = c.ip.Next()
	}
	to, err := net.ParseMAC(guestMAC)
	if err != nil {
		return nil, err
	}
	b := c.packet[:]
	copy(b, to)
	copy(b[6:], c.mac)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[ethLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(b)-ethLen))
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // not to be fragmented
	copy(ip[12:], c.ip.AsSlice())
	copy(ip[16:], guest.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^sum16(ip[:ipLen]))
	udp := ip[ipLen:]
	binary.BigEndian.PutUint16(udp, stationPort)
	binary.BigEndian.PutUint16(udp[2:], stream.CounterPort)
	binary.BigEndian.PutUint16(udp[4:], udpLen+stream.CounterSize) // its checksum stays 0: none (RFC 768)
	return c, c.meet(ctx)
}

// meet asks for the guest's address, so that the guest knows the station's: a kernel keeps few packets back for an address that it has to ask for.
func (c *cable) meet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ask := arp(1, c.mac, c.ip, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, c.guest)
	if _, err := c.conn.Write(ask); err != nil {
		return err
	}
	for !c.met {
		if _, err := c.next(); err != nil {
			return fmt.Errorf("the guest does not answer: %w", err)
		}
	}
	return nil
}

// arp returns an ARP message in its frame, behind its length.
func arp(operation byte, mac net.HardwareAddr, ip netip.Addr, to net.HardwareAddr, toIP netip.Addr) []byte {
	const frame = 60
	b := make([]byte, 4+frame)
	binary.BigEndian.PutUint32(b, frame)
	copy(b[4:], to)
	copy(b[10:], mac)
	copy(b[16:], []byte{0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, operation})
	a := b[4+ethLen:]
	copy(a[8:], mac)
	copy(a[14:], ip.AsSlice())
	copy(a[18:], to)
	copy(a[24:], toIP.AsSlice())
	return b
}

// sum16 is the sum that IP's checksum is the complement of (RFC 1071), of an even number of bytes.
func sum16(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func (c *cable) Close() error { return c.conn.Close() }

func (c *cable) send(run uint32, first uint64, n int) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.out = c.out[:0]
	for i := range n {
		stream.PutCounter(c.packet[ethLen+ipLen+udpLen:], run, first+uint64(i))
		c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(c.packet)))
		c.out = append(c.out, c.packet[:]...)
	}
	_, err := c.conn.Write(c.out)
	return err
}

// receive answers who asks for the station's address, and returns the guest's UDP payloads.
func (c *cable) receive() ([]byte, error) {
	for {
		b, err := c.next()
		if err != nil || b != nil {
			return b, err
		}
	}
}

// next takes one frame and returns its payload, nil for one of another kind.
func (c *cable) next() ([]byte, error) {
	head, err := c.in.Peek(4)
	if err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(head))
	if n > frameMax {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	b, err := c.in.Peek(4 + n)
	if err != nil {
		return nil, err
	}
	_, _ = c.in.Discard(4 + n) // Peek showed them
	b = b[4:]
	switch {
	case n >= ethLen+arpLen && binary.BigEndian.Uint16(b[12:]) == 0x0806:
		return nil, c.onARP(b[ethLen:])
	case n >= ethLen+ipLen+udpLen && binary.BigEndian.Uint16(b[12:]) == 0x0800 && b[ethLen] == 0x45 && b[ethLen+9] == 17 &&
		binary.BigEndian.Uint16(b[ethLen+ipLen+2:]) == stationPort && netip.AddrFrom4([4]byte(b[ethLen+12:])) == c.guest:
		return b[ethLen+ipLen+udpLen:], nil
	}
	return nil, nil
}

func (c *cable) onARP(m []byte) error {
	from := netip.AddrFrom4([4]byte(m[14:]))
	switch operation := binary.BigEndian.Uint16(m[6:]); {
	case operation == 2 && from == c.guest:
		c.met = true
	case operation == 1 && netip.AddrFrom4([4]byte(m[24:])) == c.ip:
		c.writing.Lock()
		defer c.writing.Unlock()
		_, err := c.conn.Write(arp(2, c.mac, c.ip, m[8:14], from))
		return err
	}
	return nil
}

// socket is a UDP socket on a LAN, for the bridge driver.
type socket struct {
	net.Conn
	in, out []byte
}

// socketBuffer is asked of the kernel for what waits to be received, in bytes.
const socketBuffer = 64 << 20

func dialGuest(ctx context.Context, lan *lab.LAN, guest string) (*socket, error) {
	conn, err := lan.DialContext(ctx, "udp4", net.JoinHostPort(guest, fmt.Sprint(stream.CounterPort)))
	if err != nil {
		return nil, err
	}
	if err := forceBuffer(conn, socketBuffer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &socket{Conn: conn, in: make([]byte, 2048), out: make([]byte, stream.CounterSize)}, nil
}

func (s *socket) send(run uint32, first uint64, n int) error {
	for i := range n {
		stream.PutCounter(s.out, run, first+uint64(i))
		if _, err := s.Write(s.out); err != nil && !refused(err) {
			return err
		}
	}
	return nil
}

func (s *socket) receive() ([]byte, error) {
	for {
		n, err := s.Read(s.in)
		if err != nil && refused(err) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		return s.in[:n], err
	}
}
