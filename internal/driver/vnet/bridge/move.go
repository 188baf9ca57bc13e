package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// announceAt is when a guest that came is announced, from its arrival on: QEMU's own pattern (announce-initial 50, step 100, 5 rounds).
var announceAt = [...]time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 450 * time.Millisecond, 800 * time.Millisecond}

// Card is a guest's NIC as others know it.
type Card struct {
	VM        inventory.VMID
	NIC       int
	MAC       string
	Addresses []netip.Addr // known IPv4 addresses; others are left to the guest
}

// Up takes a tap up, without a word to anybody: the guest begins here. Repeating it is no error; a tap that is not there is
// fault.NotFound.
func Up(vm inventory.VMID, nic int) error {
	link, err := tap(vm, nic)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	return fault.Wrap("open", "tap "+TapName(vm, nic), err)
}

// Leave takes the tap of a guest that has stopped here down: nothing comes from it any more, whatever QEMU still has to say. A tap
// that is gone has left.
func Leave(vm inventory.VMID, nic int) error {
	link, err := tap(vm, nic)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	return fault.Wrap("close", "tap "+TapName(vm, nic), err)
}

// Arrive takes the tap of a guest that runs here from now on up, and announces it once. Call Announce for the rest. It serves both ends: a
// guest that arrived at the target, and one that stays at the source after all.
func Arrive(c Card) error {
	if err := Up(c.VM, c.NIC); err != nil {
		return err
	}
	return announce(c)
}

// Announce repeats the announcement of Arrive until 0.8 s after it, as a single frame may get lost. End ctx when the guest leaves: an
// announcement behind it would draw its frames back here.
func Announce(ctx context.Context, c Card) error {
	began := time.Now()
	for _, at := range announceAt[1:] {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(at - time.Since(began)):
		}
		if err := announce(c); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes a tap that is still there though the VM's QEMU has ended. None is what is expected: then it does nothing.
func Remove(vm inventory.VMID, nic int) error {
	link, err := tap(vm, nic)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	return fault.Wrap("remove", "tap "+TapName(vm, nic), err)
}

// tap finds a NIC's tap.
func tap(vm inventory.VMID, nic int) (netlink.Link, error) {
	link, err := find(TapName(vm, nic))
	if err != nil {
		return nil, err
	}
	if link == nil {
		return nil, fault.New(fault.NotFound, "there is none: its QEMU has ended")
	}
	return link, nil
}

// announce makes the own bridge send to the tap what is for the guest, and tells all others that it is here. The own bridge has learned
// the address on another port before, and drops what comes in there for it until it learns anew, which our own frames do not make it.
func announce(c Card) error {
	link, err := tap(c.VM, c.NIC)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(c.MAC)
	if err != nil || len(mac) != 6 {
		return fault.New(fault.Invalid, "%q is no MAC address", c.MAC)
	}
	here := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_REACHABLE, Flags: netlink.NTF_MASTER, HardwareAddr: mac,
	}
	if err := netlink.NeighSet(here); err != nil {
		return fault.New(fault.Internal, "table of the bridge: %w", err)
	}
	frames := [][]byte{rarp(mac)}
	for _, a := range c.Addresses {
		if a.Is4() {
			frames = append(frames, arp(mac, a))
		}
	}
	return send(link.Attrs().MasterIndex, frames)
}

// send sends frames through the bridge, which floods them over its ports.
func send(bridge int, frames [][]byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fault.New(fault.Internal, "packet socket: %w", err)
	}
	var all error
	for _, f := range frames {
		if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: bridge}); err != nil {
			all = errors.Join(all, fault.New(fault.Internal, "announcement: %w", err))
		}
	}
	go func() { _ = unix.Close(fd) }() // the kernel takes some 10 ms for it, and a guest waits; ends by itself
	return all
}

// Numbers of the two protocols (RFC 826, RFC 903).
const (
	etherARP, etherRARP       = 0x0806, 0x8035
	opRequest, opReverse      = 1, 3
	hardwareEther, protocolIP = 1, 0x0800
)

// rarp is a reverse ARP request of and for the guest itself, the same that QEMU sends (net/announce.c).
func rarp(mac net.HardwareAddr) []byte {
	return resolution(etherRARP, opReverse, mac, mac, netip.AddrFrom4([4]byte{}))
}

// arp is an ARP announcement: a request of the guest for its own address (RFC 5227, section 3).
func arp(mac net.HardwareAddr, ip netip.Addr) []byte {
	return resolution(etherARP, opRequest, mac, make(net.HardwareAddr, 6), ip)
}

// resolution is an ARP packet in a broadcast frame, padded to Ethernet's least.
func resolution(kind, op uint16, sender, target net.HardwareAddr, ip netip.Addr) []byte {
	f := make([]byte, 0, 60)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, sender...)
	f = binary.BigEndian.AppendUint16(f, kind)
	f = binary.BigEndian.AppendUint16(f, hardwareEther)
	f = binary.BigEndian.AppendUint16(f, protocolIP)
	f = append(f, 6, 4) // lengths of the two kinds of address
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(append(f, sender...), ip.AsSlice()...)
	f = append(append(f, target...), ip.AsSlice()...)
	return f[:60]
}
