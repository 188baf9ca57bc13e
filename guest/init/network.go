//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/guest/stream"
)

// nic is the interface that the guest uses: the first that virtio-net makes.
const nic = "eth0"

// datagramBuffer is the receive buffer of each UDP service in bytes: a dozen seconds of probes, every 5 ms one.
const datagramBuffer = 4 << 20

// listen opens the services' ports and hands each to part. They need no address yet.
func (g *guest) listen(ctx context.Context, part func(string, func(context.Context) error)) error {
	for _, service := range []struct {
		name string
		port int
		run  func(context.Context, net.Listener) error
	}{
		{"echo", stream.EchoPort, stream.ServeEcho},
		{"counting stream", stream.CountPort, stream.ServeCount},
		{"control", control.Port, g.serveControl},
	} {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", ":"+strconv.Itoa(service.port))
		if err != nil {
			return err
		}
		part(service.name, func(ctx context.Context) error { return service.run(ctx, listener) })
	}
	// What came for the guest in a pause comes all at once after it. Datagrams that the kernel's default of 208 KiB, some 200 of
	// them, cannot take would count as lost frames.
	if err := os.WriteFile("/proc/sys/net/core/rmem_default", []byte(strconv.Itoa(datagramBuffer)), 0); err != nil {
		return err
	}
	for _, service := range []struct {
		name string
		port int
		run  func(context.Context, *net.UDPConn) error
	}{
		{"datagram echo", stream.EchoPort, stream.ServeDatagramEcho},
		{"counting datagrams", stream.CountPort, stream.ServeDatagramCount},
	} {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: service.port})
		if err != nil {
			return err
		}
		part(service.name, func(ctx context.Context) error { return service.run(ctx, conn) })
	}
	return nil
}

// network keeps an address by DHCP. Addressed is closed with the first one, or at once when there is no NIC.
func (g *guest) network(ctx context.Context, addressed chan struct{}) error {
	var once sync.Once
	ready := func() { once.Do(func() { close(addressed) }) }
	defer ready()
	if err := linkUp("lo"); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/class/net/" + nic); err != nil {
		return nil // a guest without network is fine
	}
	if err := linkUp(nic); err != nil {
		return err
	}
	device, err := net.InterfaceByName(nic)
	if err != nil {
		return err
	}
	return keepLease(ctx, device, func(l lease) {
		if err := l.apply(nic, true); err != nil {
			g.say("network: %v", err)
			return
		}
		ip := l.address.String()
		if old := g.ip.Swap(&ip); old == nil || *old != ip {
			g.say("network: %s has %s from %s", nic, ip, l.server)
		}
		ready()
	})
}

// mtuMin is the smallest MTU taken from a server: what every IPv4 host must accept (RFC 791).
const mtuMin = 576

// linkUp does what ip link set up does.
func linkUp(name string) error {
	return withSocket(func(socket int) error {
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, request); err != nil {
			return fmt.Errorf("flags of %s: %w", name, err)
		}
		request.SetUint16(request.Uint16() | unix.IFF_UP)
		if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
		return nil
	})
}

// lease is what DHCP gave.
type lease struct {
	address net.IP // IPv4
	mask    net.IPMask
	router  net.IP // nil without
	server  net.IP
	mtu     int           // 0 without
	renew   time.Duration // when to ask again
}

// apply sets address and mask of the card, and with route the default route over it. Setting them again changes nothing for open
// connections.
func (l lease) apply(nic string, route bool) error {
	return withSocket(func(socket int) error {
		request, err := unix.NewIfreq(nic)
		if err != nil {
			return err
		}
		if err := request.SetInet4Addr(l.address.To4()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(socket, unix.SIOCSIFADDR, request); err != nil {
			return fmt.Errorf("set address %s: %w", l.address, err)
		}
		if err := request.SetInet4Addr(l.mask); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(socket, unix.SIOCSIFNETMASK, request); err != nil {
			return fmt.Errorf("set mask %s: %w", l.mask, err)
		}
		if l.mtu >= mtuMin {
			if request, err = unix.NewIfreq(nic); err != nil {
				return err
			}
			request.SetUint32(uint32(l.mtu))
			if err := unix.IoctlIfreq(socket, unix.SIOCSIFMTU, request); err != nil {
				return fmt.Errorf("set mtu %d: %w", l.mtu, err)
			}
		}
		if l.router == nil || !route {
			return nil
		}
		return addDefaultRoute(socket, l.router)
	})
}

// rtentry is the kernel's struct rtentry of <linux/route.h> for amd64; SIOCADDRT is the shortest way to one route.
type rtentry struct {
	_       uint64
	dst     unix.RawSockaddrInet4
	gateway unix.RawSockaddrInet4
	mask    unix.RawSockaddrInet4
	flags   uint16
	_       int16
	_       uint64
	_       uintptr
	metric  int16
	_       [3]int16
	device  *byte
	mtu     uint64
	window  uint64
	rtt     uint16
	_       [3]uint16
}

func addDefaultRoute(socket int, router net.IP) error {
	route := rtentry{
		dst: unix.RawSockaddrInet4{Family: unix.AF_INET}, mask: unix.RawSockaddrInet4{Family: unix.AF_INET},
		gateway: unix.RawSockaddrInet4{Family: unix.AF_INET}, flags: unix.RTF_UP | unix.RTF_GATEWAY,
	}
	copy(route.gateway.Addr[:], router.To4())
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route)))
	if errno != 0 && errno != unix.EEXIST {
		return fmt.Errorf("default route by %s: %w", router, errno)
	}
	return nil
}

func withSocket(use func(socket int) error) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(socket) }() // only asked
	return use(socket)
}

// maskOr returns the mask, or that of a /24 if the server named none.
func maskOr(mask net.IPMask) net.IPMask {
	if len(mask) == net.IPv4len && binary.BigEndian.Uint32(mask) != 0 {
		return mask
	}
	return net.CIDRMask(24, 32)
}
