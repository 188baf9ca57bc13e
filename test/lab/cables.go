package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// With Options.Cables each host is in a network namespace of its own, as if it were another machine:
//
//	host-1: mgmt, br0 ─ eth1 ───┐
//	host-2: mgmt, br0 ─ eth1 ───┼─ lan, a learning bridge that is nobody's ─ eth0: the client
//	host-3: mgmt, br0 ─ eth1 ───┘
//
// The hosts reach one another by mgmt, over a bridge of their own. The namespaces have names that begin with that of the cluster's folder,
// by which they are swept with it.

// managementNet is the beginning of the hosts' addresses; nothing but the namespaces of one cluster ever sees them.
const managementNet = "10.99.0"

// What the client is on the LAN, and the guests' addresses by DHCP, from the tenth on.
const (
	ClientAddress = "192.0.2.1"
	lanNet        = "192.0.2"
)

// namespace is a network namespace with a name.
type namespace struct{ handle netns.NsHandle }

// newNamespace makes one with a working loopback interface.
func newNamespace(name string) (*namespace, error) {
	n := &namespace{}
	made := make(chan error)
	go func() { // ends with its thread, whose namespace has changed
		runtime.LockOSThread()
		var err error
		n.handle, err = netns.NewNamed(name)
		if err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("network namespace %s (needs root): %w", name, err)
	}
	return n, nil
}

// do runs f in the namespace; sockets and processes that f makes stay there. It runs f where it is for a nil namespace.
func (n *namespace) do(f func() error) error {
	if n == nil {
		return f()
	}
	result := make(chan error)
	go func() { // ends with its thread
		runtime.LockOSThread()
		err := netns.Set(n.handle)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// removeNamespaces removes those whose names begin with the prefix; their links go with them.
func removeNamespaces(prefix string) error {
	found, err := filepath.Glob(filepath.Join("/run/netns", prefix+"-*"))
	for _, path := range found {
		err = errors.Join(err, netns.DeleteNamed(filepath.Base(path)))
	}
	return err
}

// LAN is what the hosts' cables lead to, and the client on it.
type LAN struct {
	prefix         string
	switches, side *namespace // the bridges; the client
	hosts          []*namespace
}

// close lets go of the namespaces, which the kernel keeps until then.
func (l *LAN) close() error {
	if l == nil {
		return nil
	}
	var all error
	for _, n := range append(l.hosts, l.switches, l.side) {
		if n != nil {
			all = errors.Join(all, n.handle.Close())
		}
	}
	return all
}

// LAN returns the LAN of a cluster with Options.Cables.
func (c *Cluster) LAN() *LAN { return c.lan }

func newLAN(prefix string) (*LAN, error) {
	l := &LAN{prefix: prefix}
	var err error
	if l.switches, err = newNamespace(prefix + "-lan"); err != nil {
		return nil, err
	}
	if l.side, err = newNamespace(prefix + "-client"); err != nil {
		return nil, err
	}
	if err := l.switches.do(func() error {
		for _, name := range []string{"lan", "mgmt"} {
			if err := addLink(&netlink.Bridge{LinkAttrs: attributes(name)}, ""); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return l, l.plug(l.side, "client", "lan", "eth0", ClientAddress+"/24")
}

// addHost makes the namespace of the n-th host.
func (l *LAN) addHost(n int, address string) (*namespace, error) {
	host, err := newNamespace(fmt.Sprintf("%s-h%d", l.prefix, n))
	if err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, host)
	if err := l.plug(host, fmt.Sprintf("mgmt-%d", n), "mgmt", "mgmt", address+"/24"); err != nil {
		return nil, err
	}
	if err := l.plug(host, fmt.Sprintf("host-%d", n), "lan", "eth1", ""); err != nil {
		return nil, err
	}
	return host, host.do(func() error {
		if err := addLink(&netlink.Bridge{LinkAttrs: attributes("br0")}, ""); err != nil {
			return err
		}
		return enslave("eth1", "br0")
	})
}

// plug lays a cable from a port of a bridge to an interface in the namespace.
func (l *LAN) plug(n *namespace, port, bridge, inside, address string) error {
	if err := l.switches.do(func() error {
		return addLink(&netlink.Veth{LinkAttrs: attributes(port), PeerName: inside, PeerNamespace: netlink.NsFd(n.handle)}, bridge)
	}); err != nil {
		return err
	}
	return n.do(func() error {
		link, err := netlink.LinkByName(inside)
		if err != nil {
			return err
		}
		if address != "" {
			a, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	})
}

func attributes(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// addLink makes a link that is up, as a port of the master when one is named.
func addLink(link netlink.Link, master string) error {
	name := link.Attrs().Name
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if master != "" {
		if err := enslave(name, master); err != nil {
			return err
		}
	}
	return setLink(name, true)
}

func enslave(name, master string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	m, err := netlink.LinkByName(master)
	if err != nil {
		return err
	}
	return netlink.LinkSetMaster(link, m)
}

func setLink(name string, up bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if up {
		return netlink.LinkSetUp(link)
	}
	return netlink.LinkSetDown(link)
}

// Cable plugs the host's cable to the LAN in, or pulls it, at the switch's side.
func (h *Host) Cable(in bool) error {
	return h.cluster.lan.switches.do(func() error { return setLink(h.Name, in) })
}

// Taps lists the taps of the VM with that id on the host.
func (h *Host) Taps(vm string) ([]string, error) {
	var found []string
	err := h.namespace.do(func() error {
		all, err := netlink.LinkList()
		for _, l := range all {
			if name := l.Attrs().Name; strings.HasPrefix(name, "gw"+strings.TrimPrefix(vm, "vm-")+".") {
				found = append(found, name)
			}
		}
		return err
	})
	return found, err
}

// Learned returns the host on whose cable the LAN's switch has learned the MAC address, or what else that port leads to; "" for none.
func (l *LAN) Learned(mac string) (port string, err error) {
	err = l.switches.do(func() error {
		all, err := netlink.NeighList(0, unix.AF_BRIDGE)
		if err != nil {
			return err
		}
		for _, n := range all {
			if n.HardwareAddr.String() == mac && n.MasterIndex != 0 {
				link, err := netlink.LinkByIndex(n.LinkIndex)
				if err != nil {
					return err
				}
				port = link.Attrs().Name
			}
		}
		return nil
	})
	return port, err
}

// DialContext dials from the client.
func (l *LAN) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = l.side.do(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// ServeDHCP gives the guests addresses, until the server is closed.
func (l *LAN) ServeDHCP() (*server4.Server, error) {
	leases := map[string]net.IP{}
	answer := func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) { // one after the other
		ip := leases[m.ClientHWAddr.String()]
		if ip == nil {
			ip = net.ParseIP(fmt.Sprintf("%s.%d", lanNet, 10+len(leases))).To4()
			leases[m.ClientHWAddr.String()] = ip
		}
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		server := net.ParseIP(ClientAddress).To4()
		reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(ip), dhcpv4.WithServerIP(server),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(server),
			dhcpv4.WithLeaseTime(uint32(time.Hour/time.Second)))
		if err != nil {
			return // a message that nobody can answer
		}
		_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}) // the guest asks again
	}
	var server *server4.Server
	err := l.side.do(func() (err error) {
		server, err = server4.NewServer("eth0", nil, answer)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dhcp server: %w", err)
	}
	go func() { _ = server.Serve() }() // ends with Close
	return server, nil
}
