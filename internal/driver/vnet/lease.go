package vnet

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	leasesMax = 65536
	zone      = "godwit." // the DNS zone of GatewaySpec.Names
)

// wanted reports whether a frame from the segment is for the gateway: unicast to its address, ARP, or a DHCP request.
// It keeps out what a NAT that stands for all addresses would wrongly take: multicasts and subnet broadcasts (they would
// be sent on from this host), addresses that mean this host itself, and pings of others, which the stack would answer in
// their name.
func (g *gateway) wanted(b []byte) bool {
	target := mac(b[0:6])
	if target != g.plan.mac && target != broadcast {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		return true
	case etherIPv4:
	default:
		return false
	}
	ip := b[headerLen:]
	if len(ip) < 20 || len(ip) < 4*int(ip[0]&15)+8 || ip[0]>>4 != 4 {
		return false
	}
	to := netip.AddrFrom4([4]byte(ip[16:20]))
	payload := ip[max(20, 4*int(ip[0]&15)):]
	if ip[9] == 17 && binary.BigEndian.Uint16(payload[2:]) == 67 { // UDP to the DHCP server's port
		return true
	}
	if target == broadcast || to.IsMulticast() || to.IsLoopback() || to.As4()[0] == 0 || to.As4()[0] >= 240 {
		return false
	}
	return to == g.plan.address || ip[9] != 1
}

// claims reports whether a frame of the stack answers ARP in the name of another address, as a stack that accepts all
// addresses does.
func (g *gateway) claims(b []byte) bool {
	if binary.BigEndian.Uint16(b[12:]) != etherARP || len(b) < headerLen+28 {
		return false
	}
	a := b[headerLen:]
	return binary.BigEndian.Uint16(a[6:]) == 2 && netip.AddrFrom4([4]byte(a[14:18])) != g.plan.address
}

// lease returns the machine's address, and whether it has one. It is the one the agent fixed, else the one remembered,
// else the first free one from a place that the MAC address determines.
func (g *gateway) lease(m mac) (netip.Addr, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a, ok := g.leases[m]; ok {
		return a, true
	}
	if m.zero() || m.multicast() || len(g.leases) >= leasesMax {
		return netip.Addr{}, false
	}
	taken := map[netip.Addr]bool{g.plan.address: true}
	for _, a := range g.leases {
		taken[a] = true
	}
	for _, a := range g.plan.spec.Leases {
		taken[netip.MustParseAddr(a)] = true // planGateway has parsed it
	}
	h := fnv.New32a()
	_, _ = h.Write(m[:]) // a hash does not fail
	usable := uint32(1)<<(32-g.plan.subnet.Bits()) - 2
	base := g.plan.subnet.Addr().As4()
	for i := range min(usable, 2*leasesMax) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+1+(h.Sum32()%usable+i)%usable)
		if a := netip.AddrFrom4(b); !taken[a] {
			g.leases[m] = a
			g.sw.remember(g.plan.id, m, a)
			return a, true
		}
	}
	g.log.Warn("no free address", slog.String("network", string(g.plan.id)), slog.String("mac", m.String()))
	return netip.Addr{}, false
}

// recall takes over the leases that the agent fixed, and remembered ones as far as they fit. Nobody else has the gateway
// yet.
func (g *gateway) recall(remembered map[string]string) {
	taken := map[netip.Addr]bool{g.plan.address: true}
	for _, known := range []map[string]string{g.plan.spec.Leases, remembered} {
		for _, text := range sortedKeys(known) {
			m, err := parseMAC(text)
			a, aerr := netip.ParseAddr(known[text])
			if _, has := g.leases[m]; err == nil && aerr == nil && !has && !taken[a] && g.plan.subnet.Contains(a) {
				g.leases[m] = a
				taken[a] = true
			}
		}
	}
}

// remember keeps a lease for the next start.
func (s *Switch) remember(id inventory.NetworkID, m mac, a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[id] == nil {
		s.leases[id] = map[string]string{}
	}
	s.leases[id][m.String()] = a.String()
	s.changed()
}

func (g *gateway) leaseTable() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := make(map[string]string, len(g.leases))
	for m, a := range g.leases {
		t[m.String()] = a.String()
	}
	return t
}

// adjust brings names and forwards of a running gateway up to date and reports whether that was all that differs.
func (g *gateway) adjust(spec *GatewaySpec) bool {
	if spec == nil || spec.Subnet != g.plan.spec.Subnet || !maps.Equal(spec.Leases, g.plan.spec.Leases) {
		return false
	}
	g.names.set(spec.Names)
	if err := g.expose(spec.Forwards); err != nil {
		return false // the restart meets the same error and reports it
	}
	return true
}

// expose makes exactly these port forwards exist.
func (g *gateway) expose(forwards []inventory.PortForward) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	wanted := map[inventory.PortForward]bool{}
	for _, fwd := range forwards {
		wanted[fwd] = true
	}
	for fwd := range g.forwards {
		if !wanted[fwd] {
			g.unexpose(fwd)
		}
	}
	for _, fwd := range forwards {
		if g.forwards[fwd] {
			continue
		}
		proto, listen := transport(fwd)
		if err := g.ports.Expose(proto, listen, fwd.Guest); err != nil {
			return fault.New(fault.Unavailable, "network %s: forward %s to %s: %w", g.plan.id, fwd.Listen, fwd.Guest, err)
		}
		g.forwards[fwd] = true
	}
	return nil
}

func (g *gateway) unexpose(fwd inventory.PortForward) {
	proto, listen := transport(fwd)
	if err := g.ports.Unexpose(proto, listen); err != nil {
		g.log.Debug("forward not closed", slog.String("listen", fwd.Listen), slog.Any("err", err))
	}
	delete(g.forwards, fwd)
}

// retract ends all port forwards.
func (g *gateway) retract() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for fwd := range g.forwards {
		g.unexpose(fwd)
	}
}

// resolver answers the gateway's DNS: names of the zone from the spec, all others as this host resolves them.
type resolver struct {
	net.Resolver
	mu    sync.Mutex
	names map[string]string
}

func newResolver(names map[string]string) *resolver {
	return &resolver{names: maps.Clone(names)}
}

func (r *resolver) set(names map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = maps.Clone(names)
}

// LookupIPAddr answers A queries; see the upstream resolver of gvisor-tap-vsock's dns package.
func (r *resolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	name, ours := strings.CutSuffix(strings.ToLower(host), "."+zone)
	if !ours {
		return r.Resolver.LookupIPAddr(ctx, host)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if ip := net.ParseIP(r.names[name]); ip != nil {
		return []net.IPAddr{{IP: ip}}, nil
	}
	return nil, &net.DNSError{Err: "no such name in this network", Name: host, IsNotFound: true}
}
