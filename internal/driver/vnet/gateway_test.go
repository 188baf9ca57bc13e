package vnet

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/vnet/netclient"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// join attaches a machine with a network stack to a new port and waits until it has an address.
func (n *node) join(id, m string, address netip.Prefix) *netclient.Client {
	n.t.Helper()
	must(n.t, n.AddPort(n.t.Context(), n.spec(id, m)))
	c, err := netclient.New(netclient.Config{Socket: n.spec(id, m).Socket, MAC: m, Address: address})
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Errorf("client %s: %v", id, err)
		}
	})
	select {
	case <-c.Ready():
	case <-time.After(10 * time.Second):
		n.t.Fatalf("client %s has no address after 10 s", id)
	}
	return c
}

// echo serves one echo connection after the other on a listener until the test ends.
func echo(t testing.TB, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			_, _ = io.Copy(conn, conn)
			stop()
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { cancel(); _ = l.Close(); <-done })
}

// talk sends a line over the connection and expects it back.
func talk(t testing.TB, conn net.Conn) {
	t.Helper()
	defer func() { _ = conn.Close() }()
	must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	if _, err := conn.Write([]byte("are you there?")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 14)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "are you there?" {
		t.Fatalf("echo: %q, %v", buf, err)
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// A machine gets its address by DHCP, the same again after a restart and from the gateway of another host; a fixed
// lease is honoured.
func TestGatewayLeases(t *testing.T) {
	gateway := NetworkSpec{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24", Leases: map[string]string{macB: "10.77.0.99"}}}
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{gateway}))
	first := n.join("a", macA, netip.Prefix{})
	fixed := n.join("b", macB, netip.Prefix{})
	if got := fixed.Address().String(); got != "10.77.0.99/24" {
		t.Errorf("fixed lease: %s", got)
	}
	if got := first.Gateway().String(); got != "10.77.0.1" {
		t.Errorf("gateway: %s", got)
	}
	other := startNode(t, nil, "host-2", "")
	must(t, other.SetNetworks(t.Context(), []NetworkSpec{gateway}))
	if again := other.join("a", macA, netip.Prefix{}); again.Address() != first.Address() {
		t.Errorf("host-1 gave %s, host-2 %s", first.Address(), again.Address())
	}
	st, err := n.Networks(t.Context())
	must(t, err)
	if got := st[0].Leases[macA]; got != first.Address().Addr().String() {
		t.Errorf("lease shown as %q, client has %s", got, first.Address())
	}
	n.stop()
	n.start()
	st, err = n.Networks(t.Context())
	must(t, err)
	if got := st[0].Leases[macA]; got != first.Address().Addr().String() {
		t.Errorf("after a restart the lease is %q, client has %s", got, first.Address())
	}
}

// Two machines whose addresses collide both get one, and a full subnet gives none rather than one twice.
func TestLeasesCollide(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/29"}}}))
	n.sw.mu.Lock()
	g := n.sw.networks[blue].gateway
	n.sw.mu.Unlock()
	for i := range 5 {
		if _, ok := g.lease(mac{2, 0, 0, 0, 0, byte(i)}); !ok {
			t.Fatalf("no lease for machine %d of 5", i+1)
		}
	}
	if _, ok := g.lease(mac{2, 0, 0, 0, 0, 5}); ok {
		t.Fatal("a sixth lease in a subnet of five")
	}
	seen := map[string]bool{"10.77.0.1": true, "10.77.0.0": true, "10.77.0.7": true}
	for m, a := range g.leaseTable() {
		if seen[a] {
			t.Errorf("%s got %s, which is taken or not usable", m, a)
		}
		seen[a] = true
	}
}

// A port of the host leads to a guest, over TCP and UDP, and can be changed while connections live.
func TestPortForward(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	listen, later := freePort(t), freePort(t)
	spec := NetworkSpec{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24", Forwards: []inventory.PortForward{
		{Listen: listen, Guest: "10.77.0.5:7"}, {Listen: "udp:" + listen, Guest: "10.77.0.5:7"},
	}}}
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{spec}))
	guest := n.join("guest", macA, netip.MustParsePrefix("10.77.0.5/24"))
	l, err := guest.Listen(7)
	must(t, err)
	echo(t, l)
	packets, err := guest.ListenPacket(7)
	must(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, 1500)
		for {
			k, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(buf[:k], from)
		}
	}()
	t.Cleanup(func() { _ = packets.Close(); <-served })

	conn, err := net.Dial("tcp", listen)
	must(t, err)
	talk(t, conn)
	conn, err = net.Dial("udp", listen)
	must(t, err)
	talk(t, conn)

	alive, err := net.Dial("tcp", listen)
	must(t, err)
	_, err = alive.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(alive, make([]byte, 1))
	must(t, err)
	spec.Gateway = &GatewaySpec{Subnet: "10.77.0.0/24", Forwards: []inventory.PortForward{
		{Listen: listen, Guest: "10.77.0.5:7"}, {Listen: later, Guest: "10.77.0.5:7"},
	}}
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{spec}))
	_, err = alive.Write([]byte("y"))
	must(t, err)
	if _, err = io.ReadFull(alive, make([]byte, 1)); err != nil {
		t.Fatalf("a change of forwards cut a connection: %v", err)
	}
	must(t, alive.Close())
	conn, err = net.Dial("tcp", later)
	must(t, err)
	talk(t, conn)

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = taken.Close() }()
	spec.Gateway = &GatewaySpec{Subnet: "10.77.0.0/24", Forwards: []inventory.PortForward{{Listen: taken.Addr().String(), Guest: "10.77.0.5:7"}}}
	if err := n.SetNetworks(t.Context(), []NetworkSpec{spec}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Fatalf("a taken port: %v", err)
	}
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}}))
	if conn, err := net.Dial("tcp", listen); err == nil {
		_ = conn.Close()
		t.Fatal("the forward outlived its gateway")
	}
}

// Names of the network are answered, unknown ones are not, and a change needs no restart.
func TestGatewayNames(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	spec := func(names map[string]string) []NetworkSpec {
		return []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24", Names: names}}}
	}
	must(t, n.SetNetworks(t.Context(), spec(map[string]string{"web-1": "10.77.0.8"})))
	c := n.join("a", macA, netip.Prefix{})
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.DialContext(ctx, network, "10.77.0.1:53")
	}}
	got, err := r.LookupNetIP(t.Context(), "ip4", "web-1.godwit.")
	if err != nil || len(got) != 1 || got[0].String() != "10.77.0.8" {
		t.Fatalf("web-1.godwit: %v, %v", got, err)
	}
	if got, err := r.LookupNetIP(t.Context(), "ip4", "web-2.godwit."); err == nil {
		t.Fatalf("web-2.godwit exists: %v", got)
	}
	must(t, n.SetNetworks(t.Context(), spec(map[string]string{"web-2": "10.77.0.9"})))
	got, err = r.LookupNetIP(t.Context(), "ip4", "web-2.godwit.")
	if err != nil || len(got) != 1 || got[0].String() != "10.77.0.9" {
		t.Fatalf("web-2.godwit: %v, %v", got, err)
	}
}

// The gateway moves to another host; machines go on using it without asking anew.
func TestGatewayTakeOver(t *testing.T) {
	nodes := mesh(t, 2)
	spec := []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24", Names: map[string]string{"here": "10.77.0.2"}}}}
	must(t, nodes[0].SetNetworks(t.Context(), spec))
	c := nodes[1].join("a", macA, netip.Prefix{}) // over the trunk
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.DialContext(ctx, network, "10.77.0.1:53")
	}}
	if _, err := r.LookupNetIP(t.Context(), "ip4", "here.godwit."); err != nil {
		t.Fatal(err)
	}
	nodes[0].stop()
	nodes[1].waitTrunks(0)
	must(t, nodes[1].SetNetworks(t.Context(), spec))
	if _, err := r.LookupNetIP(t.Context(), "ip4", "here.godwit."); err != nil {
		t.Fatal(err)
	}
}

// NAT leads to addresses beyond the segment, and never to this host's own loopback.
func TestNAT(t *testing.T) {
	host := ownAddress(t)
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(t, err)
	echo(t, l)
	local, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	echo(t, local)
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24"}}}))
	c := n.join("a", macA, netip.Prefix{})
	conn, err := c.DialContext(t.Context(), "tcp", l.Addr().String())
	must(t, err)
	talk(t, conn)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if conn, err := c.DialContext(ctx, "tcp", local.Addr().String()); err == nil {
		_ = conn.Close()
		t.Fatal("a guest reached the host's loopback")
	}
}

// ownAddress returns an address of this machine that is not loopback.
func ownAddress(t testing.TB) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback, so nothing lies beyond the segment")
	return ""
}

// What a NAT that stands for every address must not take stays out.
func TestGatewayFilter(t *testing.T) {
	plan, err := planGateway(blue, GatewaySpec{Subnet: "10.77.0.0/24"})
	must(t, err)
	g := &gateway{plan: plan, leases: map[mac]netip.Addr{{2, 1}: netip.MustParseAddr("10.77.0.7")}}
	packet := func(target mac, protocol byte, to string, port uint16) []byte {
		f := numbered(target, mac{2, 1}, 0)
		b := append(f.data, make([]byte, 300)...)
		binary.BigEndian.PutUint16(b[12:], etherIPv4)
		b[14], b[23] = 0x45, protocol
		a := netip.MustParseAddr(to).As4()
		copy(b[30:], a[:])
		binary.BigEndian.PutUint16(b[36:], port)
		copy(b[34+8+28:], []byte{2, 1, 0, 0, 0, 0})
		return b
	}
	const icmp, tcp, udp = 1, 6, 17
	for _, c := range []struct {
		what string
		b    []byte
		want bool
	}{
		{"tcp to the world", packet(plan.mac, tcp, "192.0.2.1", 80), true},
		{"ping of the gateway", packet(plan.mac, icmp, "10.77.0.1", 0), true},
		{"ping of the world", packet(plan.mac, icmp, "192.0.2.1", 0), false},
		{"loopback", packet(plan.mac, tcp, "127.0.0.1", 80), false},
		{"this host", packet(plan.mac, tcp, "0.0.0.0", 80), false},
		{"multicast", packet(plan.mac, udp, "224.0.0.251", 5353), false},
		{"limited broadcast", packet(broadcast, udp, "255.255.255.255", 137), false},
		{"subnet broadcast", packet(broadcast, udp, "10.77.0.255", 137), false},
		{"dhcp", packet(broadcast, udp, "255.255.255.255", 67), true},
		{"somebody else's", packet(mac{2, 9}, tcp, "192.0.2.1", 80), false},
	} {
		if got := g.wanted(c.b); got != c.want {
			t.Errorf("%s: wanted is %v", c.what, got)
		}
		for n := headerLen; n < len(c.b); n++ { // cut short: no panic
			g.wanted(c.b[:n])
		}
	}
}
