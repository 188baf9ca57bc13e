// Package netclient is a machine on a guest's network segment that is no machine: a network stack in this process
// behind a port of the switch, or behind anything else that speaks QEMU's stream framing on a unix socket. Demo, tests
// and bench use it as the client that must not notice a migration.
//
// It needs no privilege. It does not route, serve or translate anything; the main type is Client.
package netclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

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
)

const (
	nic         = 1
	headerLen   = 14
	mtuDefault  = 1500
	frameMax    = 4096 + 65536 // as the switch
	queueLen    = 1024
	redialEvery = 100 * time.Millisecond
	batchBytes  = 64 << 10
)

// Config says where a client joins and who it is.
type Config struct {
	// Socket is the path of the switch port's unix socket.
	Socket string
	// MAC is the client's address, a unicast one.
	MAC string
	// Address is the client's address and subnet. The zero Prefix asks DHCP for them and for the gateway.
	Address netip.Prefix
	// Gateway leads out of the subnet; the zero Addr leads nowhere.
	Gateway netip.Addr
	// MTU is the longest packet in bytes; 0 is 1500.
	MTU int
}

// Client is a network stack on a segment. Make it with New, run it with Run; its other methods may be called by many
// goroutines once Ready is closed.
type Client struct {
	cfg   Config
	mac   [6]byte
	link  *channel.Endpoint
	stack *stack.Stack
	ready chan struct{}
	lease chan []byte // DHCP answers while Run asks for an address

	mu      sync.Mutex
	address netip.Prefix
	gateway netip.Addr
}

// New returns a client that is not attached yet. It checks the configuration, fault.Invalid.
func New(cfg Config) (*Client, error) {
	hw, err := net.ParseMAC(cfg.MAC)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
		return nil, fault.New(fault.Invalid, "client: %q is no unicast MAC address", cfg.MAC)
	}
	if cfg.MTU == 0 {
		cfg.MTU = mtuDefault
	}
	if cfg.MTU < 576 || cfg.MTU > frameMax-headerLen {
		return nil, fault.New(fault.Invalid, "client: mtu %d is out of range", cfg.MTU)
	}
	c := &Client{cfg: cfg, mac: [6]byte(hw), ready: make(chan struct{}), lease: make(chan []byte, 4)}
	c.link = channel.New(queueLen, uint32(cfg.MTU+headerLen), tcpip.LinkAddress(hw))
	c.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	if err := c.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return nil, fault.New(fault.Internal, "client: %s", err)
	}
	// RACK (on by default with SACK) of this gVisor version goes on at one segment per timeout after a whole window was
	// lost. A switch killed under load stalled a stream for more than 4 s in 5 of 8 runs with it, for more than 20 s in
	// two of these; without it the whole transfer took at most 2.2 s in 28 runs.
	rack := tcpip.TCPRecovery(0)
	if err := c.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &rack); err != nil {
		return nil, fault.New(fault.Internal, "client: %s", err)
	}
	if err := c.stack.CreateNIC(nic, ethernet.New(c.link)); err != nil {
		return nil, fault.New(fault.Internal, "client: %s", err)
	}
	return c, nil
}

// Ready is closed when the client is attached and has its address.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Address returns the client's address and subnet; the zero Prefix before Ready.
func (c *Client) Address() netip.Prefix {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.address
}

// Gateway returns the way out of the subnet, if there is one.
func (c *Client) Gateway() netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gateway
}

// Run keeps the client attached until ctx ends: it dials the socket, again whenever the connection breaks, and gets the
// address once. It returns nil when ctx ends; all connections of the stack are then aborted. Run may be called once.
func (c *Client) Run(ctx context.Context) error {
	defer c.link.Close()
	defer c.stack.Close()
	asked, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	failed := make(chan error, 1)
	asking.Go(func() {
		if err := c.configure(asked); err != nil && asked.Err() == nil {
			failed <- err
			cancel()
		}
	})
	for asked.Err() == nil {
		if conn, err := new(net.Dialer).DialContext(asked, "unix", c.cfg.Socket); err == nil {
			c.serve(asked, conn)
		}
		select {
		case <-asked.Done():
		case <-time.After(redialEvery):
		}
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// configure gives the stack its address and routes.
func (c *Client) configure(ctx context.Context) error {
	address, gateway := c.cfg.Address, c.cfg.Gateway
	if !address.IsValid() {
		var err error
		if address, gateway, err = c.ask(ctx); err != nil {
			return err
		}
	}
	if err := c.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(address.Addr().As4()), PrefixLen: address.Bits(),
		},
	}, stack.AddressProperties{}); err != nil {
		return fault.New(fault.Internal, "client: %s", err)
	}
	subnet, err := tcpip.NewSubnet(tcpip.AddrFrom4(address.Masked().Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(address.Bits(), 32)))
	if err != nil {
		return fault.New(fault.Internal, "client: %w", err)
	}
	routes := []tcpip.Route{{Destination: subnet, NIC: nic}}
	if gateway.IsValid() {
		everywhere := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4([4]byte{}), PrefixLen: 0}.Subnet()
		routes = append(routes, tcpip.Route{Destination: everywhere, Gateway: tcpip.AddrFrom4(gateway.As4()), NIC: nic})
	}
	c.stack.SetRouteTable(routes)
	c.mu.Lock()
	c.address, c.gateway = address, gateway
	c.mu.Unlock()
	close(c.ready)
	return nil
}

// serve moves frames between the connection and the stack until it breaks or ctx ends.
func (c *Client) serve(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // what was on its way is lost, as with a pulled cable
	defer stop()
	var sending sync.WaitGroup
	sending.Go(func() {
		c.send(ctx, conn)
		cancel()
	})
	c.receive(conn)
	cancel()
	_ = conn.Close() // also when the AfterFunc did it
	sending.Wait()
}

func (c *Client) receive(conn net.Conn) {
	r := bufio.NewReaderSize(conn, 256<<10)
	var head [4]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > frameMax {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		if len(b) < headerLen || (b[0]&1 == 0 && [6]byte(b[:6]) != c.mac) {
			continue // flooded, and for somebody else
		}
		select {
		case <-c.ready:
		default:
			if answer := dhcpAnswer(b); answer != nil {
				select {
				case c.lease <- answer:
				default: // a repeated one
				}
				continue
			}
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		c.link.InjectInbound(0, pkt)
		pkt.DecRef()
	}
}

func (c *Client) send(ctx context.Context, conn net.Conn) {
	buf := make([]byte, 0, batchBytes+frameMax)
	for {
		pkt := c.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		buf = buf[:0]
		for pkt != nil {
			view := pkt.ToView()
			buf = binary.BigEndian.AppendUint32(buf, uint32(view.Size()))
			buf = append(buf, view.AsSlice()...)
			view.Release()
			pkt.DecRef()
			if len(buf) >= batchBytes {
				break
			}
			pkt = c.link.Read()
		}
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

// DialContext connects to an IPv4 address and port of the segment, or beyond its gateway, over "tcp" or "udp". It waits
// for Ready.
func (c *Client) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return nil, fault.New(fault.Canceled, "client: not attached yet: %w", ctx.Err())
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil || !to.Addr().Is4() {
		return nil, fault.New(fault.Invalid, "client: %q is no IPv4 address and port", address)
	}
	full := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}
	switch network {
	case "tcp", "tcp4":
		conn, err := gonet.DialContextTCP(ctx, c.stack, full, ipv4.ProtocolNumber)
		if err != nil {
			return nil, fault.New(fault.Unavailable, "client: dial %s: %w", address, err)
		}
		return conn, nil
	case "udp", "udp4":
		conn, err := gonet.DialUDP(c.stack, nil, &full, ipv4.ProtocolNumber)
		if err != nil {
			return nil, fault.New(fault.Unavailable, "client: dial %s: %w", address, err)
		}
		return conn, nil
	}
	return nil, fault.New(fault.Invalid, "client: network %q is neither tcp nor udp", network)
}

// Listen accepts TCP connections on a port of the client. The client must be ready.
func (c *Client) Listen(port uint16) (net.Listener, error) {
	l, err := gonet.ListenTCP(c.stack, tcpip.FullAddress{NIC: nic, Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "client: listen on port %d: %w", port, err)
	}
	return l, nil
}

// ListenPacket receives UDP datagrams on a port of the client; 0 chooses one. The client must be ready.
func (c *Client) ListenPacket(port uint16) (net.PacketConn, error) {
	a := c.Address()
	if !a.IsValid() {
		return nil, fault.New(fault.Unavailable, "client: not attached yet: wait for Ready")
	}
	conn, err := gonet.DialUDP(c.stack, &tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: port}, nil, ipv4.ProtocolNumber)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "client: listen on port %d: %w", port, err)
	}
	return conn, nil
}

var errNoLease = errors.New("no DHCP server answered")

func (c *Client) String() string { return fmt.Sprintf("client %s (%s)", c.cfg.MAC, c.Address()) }
