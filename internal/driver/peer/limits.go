package peer

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Limits bound what other machines may hold open at a Server. A zero field is its default. Streams of hosts are not counted:
// migrations have their own bounds, and must not wait for calls.
type Limits struct {
	Handshakes           int // connections at once that have shown no certificate (yet); default 128
	HandshakesPerAddress int // of them from one address; default 32
	ConnectionsPerHost   int // of one host, for calls; default 64
	ConnectionsPerUser   int // of one user, who is known by a token; default 32
	HeaderBytes          int // of the HTTP header of a call; default 32 KiB
	// StrangerTime is how long a connection may last on which nobody is known: enough for one join. Default 15 s.
	StrangerTime time.Duration
}

// The defaults of Limits.
const (
	handshakesDefault  = 128
	perAddressDefault  = 32
	perHostDefault     = 64
	perUserDefault     = 32
	headerBytesDefault = 32 << 10
)

func (l Limits) filled() Limits {
	for _, f := range []struct {
		field   *int
		standby int
	}{
		{&l.Handshakes, handshakesDefault},
		{&l.HandshakesPerAddress, perAddressDefault},
		{&l.ConnectionsPerHost, perHostDefault},
		{&l.ConnectionsPerUser, perUserDefault},
		{&l.HeaderBytes, headerBytesDefault},
	} {
		if *f.field == 0 {
			*f.field = f.standby
		}
	}
	if l.StrangerTime == 0 {
		l.StrangerTime = strangerTimeMax
	}
	return l
}

// census counts what is open, by address while the other side is not known, by host afterwards.
type census struct {
	limits Limits

	mu        sync.Mutex
	addresses map[netip.Addr]int
	hosts     map[inventory.HostID]int
	users     map[string]int
}

func newCensus(l Limits) *census {
	return &census{limits: l, addresses: map[netip.Addr]int{}, hosts: map[inventory.HostID]int{}, users: map[string]int{}}
}

// arrive counts a connection of somebody unknown; false when its address has too many.
func (c *census) arrive(from net.Addr) (leave func(), ok bool) {
	return enter(&c.mu, c.addresses, address(from), c.limits.HandshakesPerAddress)
}

// connect counts a host's connection for calls, or says that it has too many.
func (c *census) connect(host inventory.HostID) (leave func(), err error) {
	leave, ok := enter(&c.mu, c.hosts, host, c.limits.ConnectionsPerHost)
	if !ok {
		return nil, fault.New(fault.NoResources, "host %s has %d connections here, the most that one host may have (limits.connections-per-host): try again", host, c.limits.ConnectionsPerHost)
	}
	return leave, nil
}

// user counts a user's connection, or says that it has too many.
func (c *census) user(name string) (leave func(), err error) {
	leave, ok := enter(&c.mu, c.users, name, c.limits.ConnectionsPerUser)
	if !ok {
		return nil, fault.New(fault.NoResources, "user %s has %d connections here, the most that one user may have (limits.connections-per-user): end some and try again", name, c.limits.ConnectionsPerUser)
	}
	return leave, nil
}

// enter counts one more under the key unless there are most of them.
func enter[K comparable](mu *sync.Mutex, counts map[K]int, key K, most int) (leave func(), ok bool) {
	mu.Lock()
	defer mu.Unlock()
	if counts[key] >= most {
		return nil, false
	}
	counts[key]++
	return sync.OnceFunc(func() {
		mu.Lock()
		defer mu.Unlock()
		if counts[key]--; counts[key] == 0 {
			delete(counts, key)
		}
	}), true
}

// address returns the IP address of the other side; the zero Addr, which all such share, when it has none.
func address(from net.Addr) netip.Addr {
	if tcp, ok := from.(*net.TCPAddr); ok {
		if a, ok := netip.AddrFromSlice(tcp.IP); ok {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}
