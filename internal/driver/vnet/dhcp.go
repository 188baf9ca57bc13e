package vnet

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// leaseTime is what a guest is told. The gateway itself never forgets a lease; a guest that asks every half hour follows
// a change of the spec within that time.
const leaseTime = time.Hour

// buildDHCP makes a DHCP server on the stack. Messages and loop are the dhcp module's, addresses and answers are ours. We
// do not use gvisor-tap-vsock's service: its package imports gopacket, whose tables take 7 MB of each Godwit process.
func (g *gateway) buildDHCP() error {
	var queue waiter.Queue
	ep, terr := g.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &queue)
	if terr != nil {
		return errors.New(terr.String())
	}
	ep.SocketOptions().SetBroadcast(true) // guests without an address hear nothing else
	if terr := ep.Bind(tcpip.FullAddress{NIC: gatewayNIC, Port: dhcpv4.ServerPort}); terr != nil {
		ep.Close()
		return errors.New(terr.String())
	}
	conn := gonet.NewUDPConn(&queue, ep)
	g.closes = append(g.closes, conn)
	server, err := server4.NewServer("", nil, g.serveDHCP, server4.WithConn(conn))
	if err != nil {
		return err
	}
	g.serves = append(g.serves, server.Serve)
	return nil
}

// serveDHCP answers a client without an address on this network, and every refusal, so that everybody hears it (RFC 2131, sections
// 4.1 and 4.3.2). What the message came from says nothing then: a guest whose card is new may send from the address of another.
func (g *gateway) serveDHCP(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	reply, err := g.answerDHCP(m)
	if reply != nil && (reply.MessageType() == dhcpv4.MessageTypeNak || m.ClientIPAddr.IsUnspecified()) {
		peer = &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}
	}
	if reply != nil {
		_, err = conn.WriteTo(reply.ToBytes(), peer)
	}
	if err != nil {
		g.log.Debug("dhcp message not answered", slog.String("network", string(g.plan.id)),
			slog.String("mac", m.ClientHWAddr.String()), slog.Any("err", err))
	}
}

// answerDHCP returns the answer to a client's message, nil for none (RFC 2131, section 4.3). The server is the only one
// of its network, so it refuses what it has not given, also to clients that it does not know.
func (g *gateway) answerDHCP(m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	if m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != len(mac{}) {
		return nil, nil
	}
	hw := mac(m.ClientHWAddr)
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if address, ok := g.lease(hw); ok {
			return g.reply(m, dhcpv4.MessageTypeOffer, address)
		}
	case dhcpv4.MessageTypeRequest:
		if server := m.ServerIdentifier(); server != nil && !server.Equal(g.plan.address.AsSlice()) {
			return nil, nil // the client has chosen another server's offer
		}
		address, ok := g.lease(hw)
		switch {
		case !ok:
		case requested(m) == address:
			return g.reply(m, dhcpv4.MessageTypeAck, address)
		default:
			return dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak), g.identity(),
				dhcpv4.WithOption(dhcpv4.OptMessage("this address is not yours on this network")))
		}
	case dhcpv4.MessageTypeInform: // it has an address and wants the rest
		return g.reply(m, dhcpv4.MessageTypeAck, netip.Addr{})
	case dhcpv4.MessageTypeDecline:
		g.log.Warn("address of a lease is in use by another machine", slog.String("network", string(g.plan.id)),
			slog.String("mac", hw.String()), slog.String("address", m.RequestedIPAddress().String()))
	case dhcpv4.MessageTypeRelease: // the address stays the machine's
	case dhcpv4.MessageTypeNone, dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak: // no client says this
	}
	return nil, nil
}

// requested returns the address that a request is about: named while the client has none, else the one that it has.
func requested(m *dhcpv4.DHCPv4) netip.Addr {
	ip := m.RequestedIPAddress()
	if ip == nil {
		ip = m.ClientIPAddr
	}
	address, _ := netip.AddrFromSlice(ip.To4())
	return address
}

// identity is the option that names this server.
func (g *gateway) identity() dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(g.plan.address.AsSlice()))
}

// reply tells a client all about its network; an invalid address, as of an inform's answer, and its time are left out.
func (g *gateway) reply(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, address netip.Addr) (*dhcpv4.DHCPv4, error) {
	own := net.IP(g.plan.address.AsSlice())
	with := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		g.identity(),
		dhcpv4.WithNetmask(net.CIDRMask(g.plan.subnet.Bits(), 32)),
		dhcpv4.WithRouter(own),
		dhcpv4.WithDNS(own),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, dhcpv4.Uint16(gatewayMTU).ToBytes()),
		dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{strings.TrimSuffix(zone, ".")}})),
	}
	if address.IsValid() {
		with = append(with, dhcpv4.WithYourIP(address.AsSlice()), dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(leaseTime)))
	} else {
		with = append(with, dhcpv4.WithClientIP(m.ClientIPAddr))
	}
	return dhcpv4.NewReplyFromRequest(m, with...)
}
