package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	subscription  = 5 * time.Second // how long a client of the counting datagrams is served after its last datagram
	subscriberMax = 64
	datagramMax   = 64 << 10
)

// ServeDatagramEcho sends back each datagram to where it came from, until ctx ends. It closes conn.
func ServeDatagramEcho(ctx context.Context, conn *net.UDPConn) error {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // a second close is harmless
	defer stop()
	buffer := make([]byte, datagramMax)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier datagram
		}
		_, _ = conn.WriteToUDPAddrPort(buffer[:n], from) // a datagram may be lost; the client counts
	}
}

// subscriber is a client of the counting datagrams.
type subscriber struct {
	next  uint64
	until time.Time
}

// ServeDatagramCount sends numbers, 8 bytes each and 100 per second, to everybody who sent a datagram within the last 5 s, until ctx ends. It
// closes conn. At most 64 clients are served at once; further ones are ignored.
func ServeDatagramCount(ctx context.Context, conn *net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	arrived := make(chan netip.AddrPort)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(arrived)
		var buffer [1]byte
		for {
			_, from, err := conn.ReadFromUDPAddrPort(buffer[:])
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			select {
			case arrived <- from:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		_ = conn.Close()
		<-ended
	}()

	clients := map[netip.AddrPort]*subscriber{}
	// The ticker stands while nobody listens, so that an idle guest stays idle.
	ticker := time.NewTicker(pace)
	ticker.Stop()
	defer ticker.Stop()
	var word [wordSize]byte
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case from, ok := <-arrived:
			if !ok {
				return errors.Join(ctx.Err(), net.ErrClosed)
			}
			if clients[from] == nil {
				if len(clients) == subscriberMax {
					continue
				}
				if len(clients) == 0 {
					ticker.Reset(pace)
				}
				clients[from] = &subscriber{}
			}
			clients[from].until = time.Now().Add(subscription)
		case now := <-ticker.C:
			for to, client := range clients {
				if now.After(client.until) {
					delete(clients, to)
					continue
				}
				binary.BigEndian.PutUint64(word[:], client.next)
				client.next++
				_, _ = conn.WriteToUDPAddrPort(word[:], to) // may be lost, as any datagram
			}
			if len(clients) == 0 {
				ticker.Stop()
			}
		}
	}
}
