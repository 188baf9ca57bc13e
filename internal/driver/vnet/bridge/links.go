package bridge

import (
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// find returns a link by name, or nil when there is none.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "link %s: %w", name, err)
	}
	return link, nil
}

// there returns a link by name that must be there.
func there(name string) (netlink.Link, error) {
	link, err := find(name)
	if err == nil && link == nil {
		err = fault.New(fault.NotFound, "there is no link %s (any more)", name)
	}
	return link, err
}

// isUp reports whether an administrator has the link up.
func isUp(link netlink.Link) bool { return link.Attrs().RawFlags&unix.IFF_UP != 0 }

// hasCarrier reports whether the link's other end is there, as far as its driver can tell.
func hasCarrier(link netlink.Link) bool { return link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }

// ports returns the links that have the bridge as master.
func ports(bridge netlink.Link) ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fault.New(fault.Internal, "list of links: %w", err)
	}
	var found []netlink.Link
	for _, l := range all {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			found = append(found, l)
		}
	}
	return found, nil
}

// isTap reports whether the link is a tap, of whomever.
func isTap(link netlink.Link) bool { return link.Type() == "tuntap" || link.Type() == "tun" }

// addresses lists the IP addresses of the link but those that IPv6 gives itself.
func addresses(link netlink.Link) ([]string, error) {
	all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fault.New(fault.Internal, "addresses of %s: %w", link.Attrs().Name, err)
	}
	var found []string
	for _, a := range all {
		if !a.IP.IsLinkLocalUnicast() {
			found = append(found, a.IPNet.String())
		}
	}
	return found, nil
}

// spanning reports whether the kernel runs the spanning tree protocol on the bridge, which the netlink library does not read.
func spanning(bridge netlink.Link) (bool, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(bridge.Attrs().Index) //nolint:gosec // the kernel's own number
	request.AddData(message)
	answers, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return false, fault.New(fault.Internal, "bridge %s: %w", bridge.Attrs().Name, err)
	}
	if len(answers) == 0 {
		return false, fault.New(fault.Internal, "bridge %s: the kernel says nothing of it", bridge.Attrs().Name)
	}
	attributes := answers[0][unix.SizeofIfInfomsg:]
	for _, kind := range []uint16{unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA, nl.IFLA_BR_STP_STATE} {
		all, err := nl.ParseRouteAttr(attributes)
		if err != nil {
			return false, fault.New(fault.Internal, "bridge %s: %w", bridge.Attrs().Name, err)
		}
		attributes = nil
		for _, a := range all {
			if a.Attr.Type&^unix.NLA_F_NESTED == kind {
				attributes = a.Value
			}
		}
	}
	return len(attributes) >= 4 && nl.NativeEndian().Uint32(attributes) == 1, nil // 1 is the kernel's, 2 a program's
}
