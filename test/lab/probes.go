package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/guest/stream"
)

// ProbeEvery is the pace of the UDP probe, and so the finest gap it can see.
const ProbeEvery = 5 * time.Millisecond

// probeLost is how long an echo may take before it counts as lost. The longest pause allowed is well below.
const probeLost = 5 * time.Second

// StreamRate is the pace of the counting TCP stream in bytes per second.
const StreamRate = 256 << 10

// Probes watch a guest from the segment: a UDP echo every ProbeEvery, and a counting TCP stream whose every byte is checked.
type Probes struct {
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu       sync.Mutex
	sent     map[uint64]time.Time // echoes on their way
	next     uint64
	lost     time.Duration // how long an echo may take
	echoed   uint64
	doubled  uint64
	udp, tcp gauge
	bytes    uint64
	err      error // what broke the stream
}

// gauge keeps the longest time between two signs of life.
type gauge struct {
	last    time.Time
	longest time.Duration
	ended   time.Time // when the longest gap ended
}

func (g *gauge) sign(now time.Time) {
	if !g.last.IsZero() {
		if gap := now.Sub(g.last); gap > g.longest {
			g.longest, g.ended = gap, now
		}
	}
	g.last = now
}

// Seen is what the probes have seen since a Mark.
type Seen struct {
	UDPGap, TCPGap time.Duration // the longest times without an echo and without a byte
	Lost, Doubled  uint64        // echoes, since the probes began
	Echoed         uint64
	Bytes          uint64    // of the stream, all exact, since the probes began
	UDPGapEnd      time.Time // when the longest UDP gap ended
	Err            error     // the stream broke or was not exact
}

// Gap is the longer of the two gaps.
func (s Seen) Gap() time.Duration { return max(s.UDPGap, s.TCPGap) }

// Dialer is a client on the guests' network.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Watch starts probes of the guest at ip.
func (s *Segment) Watch(ctx context.Context, ip string) (*Probes, error) { return Watch(ctx, s, ip) }

// Watch starts probes of the guest at ip from a client.
func Watch(ctx context.Context, from Dialer, ip string) (*Probes, error) {
	tcp, err := from.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(stream.CountPort)))
	if err != nil {
		return nil, fmt.Errorf("tcp stream: %w", err)
	}
	udp, err := from.DialContext(ctx, "udp", net.JoinHostPort(ip, strconv.Itoa(stream.EchoPort)))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("udp probe: %w", err), tcp.Close())
	}
	reader, err := stream.NewReader(tcp, StreamRate)
	if err != nil {
		return nil, errors.Join(err, tcp.Close(), udp.Close())
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &Probes{cancel: cancel, lost: probeLost, sent: map[uint64]time.Time{}}
	p.all.Go(func() {
		<-running.Done()
		_ = tcp.Close() // ends the readers; nothing was written to it
		_ = udp.Close()
	})
	p.all.Go(func() { p.readStream(running, reader) })
	p.all.Go(func() { p.readEchoes(udp) })
	p.all.Go(func() { p.sendEchoes(running, udp) })
	return p, nil
}

func (p *Probes) readStream(ctx context.Context, r *stream.Reader) {
	for {
		_, err := r.Read()
		now := time.Now()
		p.mu.Lock()
		if err == nil {
			p.tcp.sign(now)
			p.bytes = r.Bytes()
		} else if ctx.Err() == nil {
			p.err = err
		}
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *Probes) sendEchoes(ctx context.Context, conn net.Conn) {
	tick := time.NewTicker(ProbeEvery)
	defer tick.Stop()
	var packet [8]byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		number := p.next
		p.next++
		p.sent[number] = time.Now()
		p.mu.Unlock()
		binary.BigEndian.PutUint64(packet[:], number)
		if _, err := conn.Write(packet[:]); err != nil {
			return // closed
		}
	}
}

func (p *Probes) readEchoes(conn net.Conn) {
	var packet [64]byte
	for {
		n, err := conn.Read(packet[:])
		if err != nil {
			return // closed
		}
		if n != 8 {
			continue
		}
		number := binary.BigEndian.Uint64(packet[:])
		now := time.Now()
		p.mu.Lock()
		if _, ok := p.sent[number]; ok {
			delete(p.sent, number)
			p.echoed++
			p.udp.sign(now)
		} else {
			p.doubled++
		}
		p.mu.Unlock()
	}
}

// Patience sets how long an echo may take before it counts as lost, for a network that keeps none back.
func (p *Probes) Patience(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = d
}

// Mark begins a new measurement of gaps.
func (p *Probes) Mark() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.udp.longest, p.tcp.longest = 0, 0
}

// Seen returns what was seen since the last Mark; a gap that still goes on counts.
func (p *Probes) Seen() Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := Seen{Doubled: p.doubled, Echoed: p.echoed, Bytes: p.bytes, Err: p.err}
	for _, at := range p.sent {
		if now.Sub(at) > p.lost {
			s.Lost++
		}
	}
	s.UDPGap, s.TCPGap, s.UDPGapEnd = p.udp.longest, p.tcp.longest, p.udp.ended
	if !p.udp.last.IsZero() {
		s.UDPGap = max(s.UDPGap, now.Sub(p.udp.last))
	}
	if !p.tcp.last.IsZero() {
		s.TCPGap = max(s.TCPGap, now.Sub(p.tcp.last))
	}
	return s
}

// Settle waits until every echo that is on its way has come back or counts as lost, and returns what was seen then. The
// probe pauses for it.
func (p *Probes) Settle(ctx context.Context) Seen {
	p.mu.Lock()
	until := p.next
	p.mu.Unlock()
	_ = Until(ctx, probeLost+time.Second, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for number, at := range p.sent {
			if number < until && time.Since(at) <= p.lost {
				return errors.New("echoes are on their way")
			}
		}
		return nil
	})
	return p.Seen()
}

// Close ends the probes.
func (p *Probes) Close() {
	p.cancel()
	p.all.Wait()
}
