package bridge

import (
	"errors"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The kernel's devices.
const (
	tunDevice   = "/dev/net/tun"
	vhostDevice = "/dev/vhost-net"
)

// TapSpec describes a tap as it is wanted.
type TapSpec struct {
	VM      inventory.VMID
	NIC     int
	Network inventory.NetworkID
	MAC     string // of the guest's card, canonical
	Segment Segment
}

// Tap is a tap that nobody uses yet. Its files are for QEMU; Close them once it has them. A tap that no process has open is gone.
type Tap struct {
	Name  string
	File  *os.File
	Vhost *os.File // nil without vhost-net: QEMU then carries the frames itself
}

// Close lets go of the tap, which lives on in a QEMU that has it.
func (t *Tap) Close() {
	_ = t.File.Close() // nothing was written to either
	if t.Vhost != nil {
		_ = t.Vhost.Close()
	}
}

// Open makes the tap of a NIC as a port of its segment's bridge, down; Up or Arrive take it up. A tap of that name that is there
// already is fault.Exists: another QEMU has it.
func Open(spec TapSpec) (_ *Tap, err error) {
	name := TapName(spec.VM, spec.NIC)
	defer func() { err = fault.Wrap("make", "tap "+name, err) }()
	file, err := openTap(name)
	if err != nil {
		return nil, err
	}
	t := &Tap{Name: name, File: file}
	if err := t.configure(spec); err != nil {
		t.Close() // and with its only file it is gone
		return nil, err
	}
	if t.Vhost, err = os.OpenFile(vhostDevice, os.O_RDWR, 0); err != nil {
		t.Vhost = nil // slower, that is all; doctor says so
	}
	return t, nil
}

// openTap makes a tap that lives as long as its file (Linux, Documentation/networking/tuntap.rst). Each frame carries a virtio header,
// so that checksums and large segments can be left to whoever is next. A device that is not attached yet cannot be polled, so the
// file is none of the runtime's poller.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Incompatible, "%s: %w: modprobe tun, and start godwit as root", tunDevice, err)
	}
	file := os.NewFile(uintptr(fd), tunDevice) //nolint:gosec // an open descriptor is not negative
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(fault.New(fault.Internal, "%w", err), file.Close())
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		kind := fault.Internal
		if errors.Is(err, unix.EBUSY) {
			kind = fault.Exists
		}
		return nil, errors.Join(fault.New(kind, "%w", err), file.Close())
	}
	return file, nil
}

// configure makes the new tap a port of its bridge. It gets a MAC address of its own that differs from the guest's and is high: a bridge
// takes the lowest among its ports, and should not change its own with each VM.
func (t *Tap) configure(spec TapSpec) error {
	link, err := there(t.Name)
	if err != nil {
		return err
	}
	master, err := there(spec.Segment.Bridge)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil || len(mac) != 6 {
		return fault.New(fault.Invalid, "%q is no MAC address", spec.MAC)
	}
	mac[0] ^= 0xfe ^ 0x52 // 52:54:… becomes fe:54:…
	for _, err := range []error{
		netlink.LinkSetAlias(link, aliasOwn+string(spec.VM)+" on "+string(spec.Network)),
		netlink.LinkSetHardwareAddr(link, mac),
		netlink.LinkSetMTU(link, spec.Segment.MTU),
		quiet(link),
		netlink.LinkSetMaster(link, master),
	} {
		if err != nil {
			return fault.New(fault.Internal, "%w", err)
		}
	}
	return nil
}

// Vhost returns nil when the kernel carries guests' frames (vhost-net), or why QEMU has to.
func Vhost() error {
	file, err := os.OpenFile(vhostDevice, os.O_RDWR, 0)
	if err != nil {
		return fault.New(fault.Incompatible, "%w", err)
	}
	return file.Close()
}

// VLANs returns nil when the kernel can put 802.1Q tags on, or why not. It asks for a sub-interface of the loopback interface, which makes
// the kernel load its module where there is one, and which it then refuses all the same.
func VLANs() error {
	lo, err := there("lo")
	if err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.ParentIndex = "gw-vlan-probe", lo.Attrs().Index
	probe := &netlink.Vlan{LinkAttrs: attributes, VlanId: 1}
	if err := netlink.LinkAdd(probe); err == nil {
		return netlink.LinkDel(probe)
	}
	if _, err := os.Stat("/proc/net/vlan"); err != nil { // the module's own folder
		return vlanRefused(unix.EOPNOTSUPP)
	}
	return nil
}
