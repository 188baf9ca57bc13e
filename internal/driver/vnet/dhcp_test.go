package vnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func (n *node) gateway() *gateway {
	n.sw.mu.Lock()
	defer n.sw.mu.Unlock()
	return n.sw.networks[blue].gateway
}

// What a client may ask, and what it is told (RFC 2131, section 4.3).
func TestDHCPAnswers(t *testing.T) {
	const hw, fixed = "52:54:00:00:00:0d", "10.77.1.99"
	n := startNode(t, nil, "host-1", "")
	spec := NetworkSpec{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/23", Leases: map[string]string{hw: fixed}}}
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{spec}))
	own := net.ParseIP(fixed)
	foreign, server, elsewhere := net.IPv4(10, 77, 0, 50), net.IPv4(10, 77, 0, 1), net.IPv4(10, 77, 0, 2)
	names := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)) }
	picks := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip)) }
	const silence = dhcpv4.MessageTypeNone
	for _, c := range []struct {
		what string
		kind dhcpv4.MessageType
		with []dhcpv4.Modifier
		want dhcpv4.MessageType
	}{
		{"discover", dhcpv4.MessageTypeDiscover, nil, dhcpv4.MessageTypeOffer},
		{"discover that hopes for another address", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{names(foreign)}, dhcpv4.MessageTypeOffer},
		{"request of the offer", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{names(own), picks(server)}, dhcpv4.MessageTypeAck},
		{"request of another server's offer", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{names(own), picks(elsewhere)}, silence},
		{"request of an address not offered", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{names(foreign), picks(server)}, dhcpv4.MessageTypeNak},
		{"reboot with its address", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{names(own)}, dhcpv4.MessageTypeAck},
		{"reboot with an address of another network", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{names(net.IPv4(192, 0, 2, 9))}, dhcpv4.MessageTypeNak},
		{"renewal", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{dhcpv4.WithClientIP(own)}, dhcpv4.MessageTypeAck},
		{"renewal of a foreign address", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{dhcpv4.WithClientIP(foreign)}, dhcpv4.MessageTypeNak},
		{"request of nothing", dhcpv4.MessageTypeRequest, nil, dhcpv4.MessageTypeNak},
		{"inform", dhcpv4.MessageTypeInform, []dhcpv4.Modifier{dhcpv4.WithClientIP(foreign)}, dhcpv4.MessageTypeAck},
		{"release", dhcpv4.MessageTypeRelease, []dhcpv4.Modifier{dhcpv4.WithClientIP(own)}, silence},
		{"decline", dhcpv4.MessageTypeDecline, []dhcpv4.Modifier{names(own)}, silence},
		{"another server's answer", dhcpv4.MessageTypeOffer, []dhcpv4.Modifier{func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply }}, silence},
		{"a group's hardware address", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{dhcpv4.WithHwAddr(broadcast[:])}, silence},
		{"a hardware address of two bytes", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr{2, 1})}, silence},
	} {
		t.Run(c.what, func(t *testing.T) {
			id, err := net.ParseMAC(hw)
			must(t, err)
			m, err := dhcpv4.New(dhcpv4.PrependModifiers(c.with, dhcpv4.WithHwAddr(id), dhcpv4.WithMessageType(c.kind))...)
			must(t, err)
			m, err = dhcpv4.FromBytes(m.ToBytes()) // as a server gets it
			must(t, err)
			got, err := n.gateway().answerDHCP(m)
			must(t, err)
			if got == nil {
				if c.want != silence {
					t.Fatalf("no answer, want %s", c.want)
				}
				return
			}
			got, err = dhcpv4.FromBytes(got.ToBytes())
			must(t, err)
			if got.MessageType() != c.want || got.TransactionID != m.TransactionID || got.OpCode != dhcpv4.OpcodeBootReply || !got.ServerIdentifier().Equal(server) {
				t.Fatalf("want %s, got %s", c.want, got.Summary())
			}
			given, lasts := own, time.Hour
			switch {
			case c.want == dhcpv4.MessageTypeNak:
				if !got.YourIPAddr.IsUnspecified() || got.Options.Has(dhcpv4.OptionIPAddressLeaseTime) {
					t.Fatalf("a refusal that gives: %s", got.Summary())
				}
				return
			case c.kind == dhcpv4.MessageTypeInform:
				given, lasts = net.IPv4zero, 0
			}
			bits, _ := got.SubnetMask().Size()
			mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, got.Options)
			if !got.YourIPAddr.Equal(given) || got.IPAddressLeaseTime(0) != lasts || bits != 23 || err != nil || mtu != gatewayMTU ||
				len(got.Router()) != 1 || !got.Router()[0].Equal(server) || len(got.DNS()) != 1 || !got.DNS()[0].Equal(server) ||
				got.DomainSearch() == nil || len(got.DomainSearch().Labels) != 1 || got.DomainSearch().Labels[0] != "godwit" {
				t.Fatalf("%s", got.Summary())
			}
		})
	}
	if got := n.gateway().leaseTable(); len(got) != 1 || got[hw] != fixed {
		t.Errorf("the leases are now %v", got)
	}
}

// A machine renews its lease by unicast and is answered so. When it asks for another's address, the refusal goes to
// everybody, and it keeps its lease.
func TestDHCPRenewal(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24"}}}))
	c := n.join("a", macA, netip.Prefix{})
	other := n.station("b", macB)
	conn, err := c.ListenPacket(dhcpv4.ClientPort)
	must(t, err)
	defer func() { _ = conn.Close() }()
	hw, err := net.ParseMAC(macA)
	must(t, err)
	request := func(address netip.Addr) *dhcpv4.DHCPv4 {
		m, err := dhcpv4.New(dhcpv4.WithHwAddr(hw), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(address.AsSlice()))
		must(t, err)
		_, err = conn.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1).To4(), Port: dhcpv4.ServerPort})
		must(t, err)
		return m
	}
	own := c.Address().Addr()
	for range 2 {
		m := request(own)
		must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
		buf := make([]byte, gatewayMTU)
		k, from, err := conn.ReadFrom(buf)
		must(t, err)
		got, err := dhcpv4.FromBytes(buf[:k])
		must(t, err)
		if got.MessageType() != dhcpv4.MessageTypeAck || got.TransactionID != m.TransactionID || !got.YourIPAddr.Equal(own.AsSlice()) {
			t.Fatalf("renewal answered by %s with %s", from, got.Summary())
		}
	}
	m := request(own.Next())
	for {
		b := other.next().data // whatever else is broadcast comes too
		if mac(b[:6]) != broadcast || binary.BigEndian.Uint16(b[12:]) != etherIPv4 || binary.BigEndian.Uint16(b[36:]) != dhcpv4.ClientPort {
			continue
		}
		got, err := dhcpv4.FromBytes(b[headerLen+20+8:])
		must(t, err)
		if got.MessageType() == dhcpv4.MessageTypeNak && got.TransactionID == m.TransactionID {
			break
		}
	}
	if got := n.gateway().leaseTable()[macA]; got != own.String() {
		t.Errorf("the lease is now %s", got)
	}
}
