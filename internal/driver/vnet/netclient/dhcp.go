package netclient

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/godwit-vm/godwit/internal/fault"
)

const (
	askEvery = 500 * time.Millisecond // RFC 2131 begins at 4 s; this segment is never that slow
	askMax   = 60                     // tries, half a minute
)

// ask gets an address by DHCP (RFC 2131: discover, offer, request, acknowledge). It speaks in frames of its own, since a
// stack without an address can send nothing. The lease is not renewed: the gateway's never end while it knows them.
func (c *Client) ask(ctx context.Context) (netip.Prefix, netip.Addr, error) {
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(c.mac[:]))
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, fault.New(fault.Internal, "client: %w", err)
	}
	offer, err := c.exchange(ctx, discover, dhcpv4.MessageTypeOffer)
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, fault.New(fault.Internal, "client: %w", err)
	}
	ack, err := c.exchange(ctx, request, dhcpv4.MessageTypeAck)
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, err
	}
	address, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	bits, _ := ack.SubnetMask().Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, netip.Addr{}, fault.New(fault.Incompatible, "client: DHCP gave no address and mask: %s", ack.Summary())
	}
	var gateway netip.Addr
	if routers := ack.Router(); len(routers) > 0 {
		gateway, _ = netip.AddrFromSlice(routers[0].To4())
	}
	return netip.PrefixFrom(address, bits), gateway, nil
}

// exchange sends a message until an answer of the kind comes.
func (c *Client) exchange(ctx context.Context, m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	again := time.NewTicker(askEvery)
	defer again.Stop()
	for range askMax {
		c.emit(m.ToBytes())
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil, fault.New(fault.Canceled, "client: dhcp: %w", ctx.Err())
			case <-again.C:
				waiting = false
			case b := <-c.lease:
				answer, err := dhcpv4.FromBytes(b)
				if err == nil && answer.TransactionID == m.TransactionID && answer.MessageType() == kind {
					return answer, nil
				}
			}
		}
	}
	return nil, fault.New(fault.Unavailable, "client: %w: does the network have a gateway?", errNoLease)
}

// emit queues a DHCP message as a broadcast frame, as if the stack had sent it.
func (c *Client) emit(payload []byte) {
	const ipLen, udpLen = header.IPv4MinimumSize, header.UDPMinimumSize
	b := make([]byte, headerLen+ipLen+udpLen+len(payload))
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(b[6:], c.mac[:])
	binary.BigEndian.PutUint16(b[12:], uint16(header.IPv4ProtocolNumber))
	all := tcpip.AddrFrom4([4]byte{255, 255, 255, 255})
	none := tcpip.AddrFrom4([4]byte{})
	ip := header.IPv4(b[headerLen:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(ipLen + udpLen + len(payload)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: none, DstAddr: all,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(b[headerLen+ipLen:])
	u.Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(udpLen + len(payload))})
	copy(u.Payload(), payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, none, all, u.Length())
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(payload, sum)))

	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	var list stack.PacketBufferList
	list.PushBack(pkt)
	_, _ = c.link.WritePackets(list) // a full queue: the message is repeated
	list.DecRef()
}

// dhcpAnswer returns the DHCP message in a frame for a DHCP client, or nil.
func dhcpAnswer(b []byte) []byte {
	if binary.BigEndian.Uint16(b[12:]) != uint16(header.IPv4ProtocolNumber) {
		return nil
	}
	ip := header.IPv4(b[headerLen:])
	if !ip.IsValid(len(ip)) || ip.TransportProtocol() != header.UDPProtocolNumber {
		return nil
	}
	u := header.UDP(ip.Payload())
	if len(u) < header.UDPMinimumSize || u.DestinationPort() != 68 {
		return nil
	}
	return u.Payload()
}
