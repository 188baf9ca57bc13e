//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// The client is a plain UDP socket bound to the NIC: with the broadcast flag set (RFC 2131 section 4.1) answers arrive before the NIC has
// an address, so no raw socket is needed. Messages are dhcpv4's, the little state machine is ours.

const (
	retryMin = 250 * time.Millisecond // the first retry; a segment between two processes on one machine needs no 4 s
	retryMax = 8 * time.Second
	renewMin = time.Second      // renewals are never more frequent, whatever the server says
	renewMax = 12 * time.Hour   // and never rarer
	patience = 30 * time.Second // between renewals when the server does not answer
)

// keepLease gets a lease, hands it to use, and renews it, until ctx ends.
func keepLease(ctx context.Context, device *net.Interface, use func(lease)) error {
	conn, err := listenDHCP(ctx, device.Name)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // only datagrams
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		ack, err := acquire(ctx, conn, device.HardwareAddr)
		if err != nil {
			return err
		}
		for ack != nil {
			l := leaseOf(ack)
			use(l)
			if err := sleep(ctx, l.renew); err != nil {
				return err
			}
			if ack, err = renew(ctx, conn, ack); err != nil {
				return err
			}
		}
	}
}

func listenDHCP(ctx context.Context, name string) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlErr := raw.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), name),
			)
		})
		return errors.Join(controlErr, err)
	}}
	conn, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", dhcpv4.ClientPort))
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("%T is no UDP socket", conn)
	}
	return udp, nil
}

// acquire asks until somebody offers an address and grants it.
func acquire(ctx context.Context, conn *net.UDPConn, mac net.HardwareAddr) (*dhcpv4.DHCPv4, error) {
	for {
		discover, err := dhcpv4.NewDiscovery(mac, dhcpv4.WithBroadcast(true))
		if err != nil {
			return nil, err
		}
		offer, err := exchange(ctx, conn, discover, 0, dhcpv4.MessageTypeOffer)
		if err != nil {
			return nil, err
		}
		request, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithBroadcast(true))
		if err != nil {
			return nil, err
		}
		ack, err := exchange(ctx, conn, request, patience, dhcpv4.MessageTypeAck)
		if err != nil {
			return nil, err
		}
		if ack != nil {
			return ack, nil
		}
	}
}

// renew asks for the same address again. It returns nil if the server refuses or the lease has ended without an answer.
func renew(ctx context.Context, conn *net.UDPConn, ack *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	request, err := dhcpv4.NewRenewFromAck(ack, dhcpv4.WithBroadcast(true))
	if err != nil {
		return nil, err
	}
	return exchange(ctx, conn, request, max(leaseTime(ack)/2, patience), dhcpv4.MessageTypeAck)
}

// exchange sends a message until an answer of the wanted type comes. It returns nil after a refusal, or when patience (if not 0) is over.
func exchange(
	ctx context.Context, conn *net.UDPConn, message *dhcpv4.DHCPv4, patience time.Duration, want dhcpv4.MessageType,
) (*dhcpv4.DHCPv4, error) {
	var end time.Time
	if patience > 0 {
		end = time.Now().Add(patience)
	}
	broadcast := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ServerPort}
	packet := message.ToBytes()
	buffer := make([]byte, 2048)
	for retry := retryMin; ; retry = min(2*retry, retryMax) {
		_, _ = conn.WriteToUDP(packet, broadcast) // a link that is down drops it, and the next try may succeed
		for deadline := time.Now().Add(retry); ; {
			_ = conn.SetReadDeadline(deadline) // on an open socket this cannot fail
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			n, _, err := conn.ReadFromUDP(buffer)
			if errors.Is(err, net.ErrClosed) {
				return nil, err
			}
			if err != nil {
				break // time to send again
			}
			answer, err := dhcpv4.FromBytes(buffer[:n])
			if err != nil || answer.OpCode != dhcpv4.OpcodeBootReply || answer.TransactionID != message.TransactionID {
				continue
			}
			if answer.MessageType() == want {
				return answer, nil
			}
			if answer.MessageType() == dhcpv4.MessageTypeNak {
				return nil, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !end.IsZero() && time.Now().After(end) {
			return nil, nil
		}
	}
}

func leaseTime(ack *dhcpv4.DHCPv4) time.Duration { return ack.IPAddressLeaseTime(time.Hour) }

func leaseOf(ack *dhcpv4.DHCPv4) lease {
	l := lease{
		address: ack.YourIPAddr, mask: maskOr(ack.SubnetMask()), server: ack.ServerIdentifier(),
		renew: min(max(leaseTime(ack)/2, renewMin), renewMax),
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil {
		l.mtu = int(mtu)
	}
	if routers := ack.Router(); len(routers) > 0 {
		l.router = routers[0]
	}
	return l
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
