package vnet

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/services/dns"
	"github.com/containers/gvisor-tap-vsock/pkg/services/forwarder"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/sirupsen/logrus"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	gatewayMTU   = 1500
	gatewayQueue = 1024
	gatewayNIC   = 1
	etherIPv4    = 0x0800
	etherARP     = 0x0806
)

// gateway is a port of a network behind which gvisor-tap-vsock's DNS and NAT and our DHCP run on a stack of our own, so
// that it can be closed again. It filters what goes in: only what is meant for a gateway, see wanted.
type gateway struct {
	plan   *gatewayPlan
	sw     *Switch
	port   *port
	log    *slog.Logger
	stack  *stack.Stack
	link   *channel.Endpoint
	ports  *forwarder.PortsForwarder
	names  *resolver
	serves []func() error // services, each until its socket is closed
	closes []io.Closer    // these sockets
	stop   chan struct{}
	done   chan struct{}

	mu       sync.Mutex
	leases   map[mac]netip.Addr
	forwards map[inventory.PortForward]bool
}

// gatewayPlan is a checked GatewaySpec.
type gatewayPlan struct {
	id      inventory.NetworkID
	spec    GatewaySpec
	subnet  netip.Prefix
	address netip.Addr
	mac     mac
}

func planGateway(id inventory.NetworkID, spec GatewaySpec) (*gatewayPlan, error) {
	subnet, err := netip.ParsePrefix(spec.Subnet)
	if err != nil || !subnet.Addr().Is4() || subnet.Bits() > 30 || subnet.Bits() < 8 {
		return nil, fault.New(fault.Invalid, "network %s: subnet %q is no IPv4 subnet between /8 and /30: write one like 10.77.0.0/24", id, spec.Subnet)
	}
	subnet = subnet.Masked()
	p := &gatewayPlan{id: id, spec: spec, subnet: subnet, address: subnet.Addr().Next()}
	binary.BigEndian.PutUint32(p.mac[2:], uint32(keyOfNetwork(id)))
	p.mac[0], p.mac[1] = 0x52, 0x55 // locally administered, not in QEMU's own 52:54:00
	for m, ip := range spec.Leases {
		addr, err := netip.ParseAddr(ip)
		if hw, merr := parseMAC(m); merr != nil || hw.zero() || err != nil || !subnet.Contains(addr) || addr == p.address {
			return nil, fault.New(fault.Invalid, "network %s: lease %s for %q: no address of %s that a guest can have", id, ip, m, subnet)
		}
	}
	for name, ip := range spec.Names {
		if addr, err := netip.ParseAddr(ip); err != nil || !addr.Is4() {
			return nil, fault.New(fault.Invalid, "network %s: name %s: %q is no IPv4 address", id, name, ip)
		}
	}
	for _, fwd := range spec.Forwards {
		_, listen := transport(fwd)
		_, errListen := netip.ParseAddrPort(listen)
		guest, err := netip.ParseAddrPort(fwd.Guest)
		if err != nil || errListen != nil || !subnet.Contains(guest.Addr()) {
			return nil, fault.New(fault.Invalid, "network %s: forward %s to %s: write host-address:port and guest-address:port in %s",
				id, fwd.Listen, fwd.Guest, subnet)
		}
	}
	return p, nil
}

// transport splits a forward's protocol from its address.
func transport(fwd inventory.PortForward) (types.TransportProtocol, string) {
	if rest, ok := strings.CutPrefix(fwd.Listen, "udp:"); ok {
		return types.UDP, rest
	}
	return types.TCP, strings.TrimPrefix(fwd.Listen, "tcp:")
}

// quiet keeps the services from writing to stderr through logrus; what matters of them is seen in our own errors.
var quiet = sync.OnceFunc(func() { logrus.SetOutput(io.Discard) })

// startGateway builds the network's gateway and has it run. The caller holds ops.
func (s *Switch) startGateway(ctx context.Context, n *network) error {
	quiet()
	plan, err := planGateway(n.spec.ID, *n.spec.Gateway)
	if err != nil {
		return err
	}
	p, err := newPort(PortSpec{ID: "gateway " + string(plan.id), Network: plan.id, MAC: plan.mac.String()}, ModeNormal)
	if err != nil {
		return err
	}
	g := &gateway{
		plan: plan, sw: s, port: p, log: s.log, names: newResolver(plan.spec.Names),
		stop: make(chan struct{}), done: make(chan struct{}),
		leases: map[mac]netip.Addr{}, forwards: map[inventory.PortForward]bool{},
	}
	if err := g.build(); err != nil {
		g.close()
		return fault.New(fault.Internal, "network %s: gateway: %w", plan.id, err)
	}
	s.mu.Lock()
	g.recall(s.leases[plan.id])
	s.mu.Unlock()
	s.fabric.mu.Lock()
	p.connected = true
	err = s.fabric.addPort(p, time.Now())
	s.fabric.mu.Unlock()
	if err != nil {
		g.close()
		return err
	}
	s.mu.Lock()
	n.gateway = g
	s.mu.Unlock()
	if !s.start(g.run) {
		close(g.done)
		return fault.New(fault.Unavailable, "switch is ending")
	}
	s.log.InfoContext(ctx, "gateway runs", slog.String("network", string(plan.id)), slog.String("address", plan.address.String()))
	return g.expose(plan.spec.Forwards)
}

// stopGateway ends the network's gateway, if it has one, and waits for it. The caller holds ops.
func (s *Switch) stopGateway(n *network) {
	g := n.gateway
	if g == nil {
		return
	}
	s.mu.Lock()
	n.gateway = nil
	s.mu.Unlock()
	s.unplug(g.port)
	close(g.stop)
	select {
	case <-g.done:
	case <-s.ended:
	}
	s.log.Info("gateway ended", slog.String("network", string(n.spec.ID)))
}

// build makes the stack and the services on it.
func (g *gateway) build() error {
	plan := g.plan
	g.link = channel.New(gatewayQueue, gatewayMTU+headerLen, tcpip.LinkAddress(plan.mac[:]))
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := g.stack.CreateNIC(gatewayNIC, ethernet.New(g.link)); err != nil {
		return errors.New(err.String())
	}
	own := tcpip.AddrFrom4(plan.address.As4())
	if err := g.stack.AddProtocolAddress(gatewayNIC, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: own, PrefixLen: plan.subnet.Bits()},
	}, stack.AddressProperties{}); err != nil {
		return errors.New(err.String())
	}
	// NAT: the stack accepts connections to any address and speaks in its name.
	if err := g.stack.SetSpoofing(gatewayNIC, true); err != nil {
		return errors.New(err.String())
	}
	if err := g.stack.SetPromiscuousMode(gatewayNIC, true); err != nil {
		return errors.New(err.String())
	}
	subnet, err := tcpip.NewSubnet(tcpip.AddrFrom4(plan.subnet.Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(plan.subnet.Bits(), 32)))
	if err != nil {
		return err
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: gatewayNIC}})

	var nat sync.Mutex
	none := map[tcpip.Address]tcpip.Address{}
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.TCP(g.stack, none, &nat, false).HandlePacket)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, forwarder.UDP(g.stack, none, &nat, false).HandlePacket)
	g.ports = forwarder.NewPortsForwarder(g.stack)
	return g.buildServices(own)
}

func (g *gateway) buildServices(own tcpip.Address) error {
	name := tcpip.FullAddress{NIC: gatewayNIC, Addr: own, Port: 53}
	udpConn, err := gonet.DialUDP(g.stack, &name, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	g.closes = append(g.closes, udpConn)
	tcpListener, err := gonet.ListenTCP(g.stack, name, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	g.closes = append(g.closes, tcpListener)
	names, err := dns.NewWithUpstreamResolver(udpConn, tcpListener, nil, g.names)
	if err != nil {
		return err
	}
	g.serves = append(g.serves, names.Serve, names.ServeTCP)
	return g.buildDHCP()
}

// run moves frames between the fabric and the stack until ctx ends or the gateway is stopped, and then closes it.
func (g *gateway) run(ctx context.Context) {
	defer close(g.done)
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, serve := range g.serves {
		all.Go(func() {
			if err := serve(); err != nil && ctx.Err() == nil {
				g.log.ErrorContext(ctx, "gateway service ended", slog.String("network", string(g.plan.id)), slog.Any("err", err))
			}
		})
	}
	all.Go(func() { g.inbound(ctx) })
	all.Go(func() { g.outbound(ctx) })
	select {
	case <-ctx.Done():
	case <-g.stop:
	}
	cancel()
	g.close()
	all.Wait()
}

// close frees what build made.
func (g *gateway) close() {
	g.retract()
	for _, c := range g.closes {
		_ = c.Close() // a socket on a stack that ends now
	}
	if g.stack != nil {
		g.stack.Close()
	}
	if g.link != nil {
		g.link.Close()
	}
}

// inbound gives the stack what is meant for it.
func (g *gateway) inbound(ctx context.Context) {
	var batch []item
	for {
		batch = g.port.out.take(batch[:0], writeChunk)
		g.port.out.done()
		if len(batch) == 0 {
			select {
			case <-g.port.out.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		for i, it := range batch {
			if g.wanted(it.frame.data) {
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(it.frame.data)})
				g.link.InjectInbound(0, pkt)
				pkt.DecRef()
			}
			it.frame.release()
			batch[i] = item{}
		}
	}
}

// outbound puts what the stack sends on the segment.
func (g *gateway) outbound(ctx context.Context) {
	one := make([]*frame, 1)
	for {
		pkt := g.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		view := pkt.ToView()
		b := view.AsSlice()
		if len(b) >= headerLen && !g.claims(b) {
			one[0] = copyFrame(b)
			_, _ = g.sw.fabric.fromPort(g.port, one, time.Now()) // a gateway's port has no gate
		}
		view.Release()
		pkt.DecRef()
	}
}
