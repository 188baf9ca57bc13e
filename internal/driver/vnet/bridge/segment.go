package bridge

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Network is a bridge network with what carries it on this host.
type Network struct {
	Owner   string // which Godwit on this machine: its run directory. Others' bridges are left alone
	ID      inventory.NetworkID
	VLAN    int // tag on an uplink; a bridge is on its segment already, tagged or not
	MTU     int // that the links must have at least; 0: whatever they have
	Carrier Carrier
}

// Segment is a network as this host has it.
type Segment struct {
	Bridge string
	MTU    int // of the bridge, and so of its taps
}

// Ready makes sure that this host has the network and returns the bridge that it is on. Over an uplink that includes making bridge and
// VLAN sub-interface; repeating it changes nothing. An administrator's bridge is only looked at. The error (fault.Incompatible, or
// what the kernel said) is one line for people: why this host does not have the network, and what to do.
func Ready(n Network) (Segment, error) {
	if os.Geteuid() != 0 {
		return Segment{}, fault.New(fault.Incompatible, "godwit does not run as root there, and cannot make taps: start it as root")
	}
	if n.Carrier.Uplink != "" {
		return overUplink(n)
	}
	link, err := find(n.Carrier.Bridge)
	if err != nil {
		return Segment{}, err
	}
	name := n.Carrier.Bridge
	switch {
	case link == nil:
		return Segment{}, fault.New(fault.Incompatible, "there is no bridge %s: make it, or name another", name)
	case link.Type() != "bridge":
		return Segment{}, fault.New(fault.Incompatible, "%s is no bridge but of type %s: name a bridge, or write uplink:%s to have one made over it", name, link.Type(), name)
	}
	return usable(n, link)
}

// usable looks at a bridge that is there.
func usable(n Network, bridge netlink.Link) (Segment, error) {
	name, mtu := bridge.Attrs().Name, bridge.Attrs().MTU
	if !isUp(bridge) {
		return Segment{}, fault.New(fault.Incompatible, "bridge %s is down: ip link set %s up", name, name)
	}
	if n.MTU > mtu {
		return Segment{}, fault.New(fault.Incompatible, "bridge %s has an MTU of %d and the network one of %d: raise it on the bridge's ports and on %s", name, mtu, n.MTU, name)
	}
	stp, err := spanning(bridge)
	if err != nil {
		return Segment{}, err
	}
	if stp {
		// A port would be deaf for twice the forward delay, 30 s, after each start and each migration.
		return Segment{}, fault.New(fault.Incompatible, "bridge %s runs the spanning tree protocol, and a VM that arrives would be cut off for half a minute: ip link set %s type bridge stp_state 0 (join redundant cables in a bond)", name, name)
	}
	all, err := ports(bridge)
	if err != nil {
		return Segment{}, err
	}
	all = slices.DeleteFunc(all, isTap)
	if len(all) > 0 && !slices.ContainsFunc(all, func(l netlink.Link) bool { return isUp(l) && hasCarrier(l) }) {
		var names []string
		for _, l := range all {
			names = append(names, l.Attrs().Name)
		}
		return Segment{}, fault.New(fault.Incompatible, "no port of bridge %s has a carrier (%s): plug the cable in, or take the port up", name, strings.Join(names, ", "))
	}
	return Segment{Bridge: name, MTU: mtu}, nil
}

// overUplink makes sure that there is a bridge of our own over the uplink.
func overUplink(n Network) (Segment, error) {
	uplink, err := find(n.Carrier.Uplink)
	if err != nil {
		return Segment{}, err
	}
	name := n.Carrier.Uplink
	if uplink == nil {
		return Segment{}, fault.New(fault.Incompatible, "there is no interface %s: name another uplink (ip link lists them)", name)
	}
	if uplink.Type() == "bridge" {
		return Segment{}, fault.New(fault.Incompatible, "%s is a bridge: write bridge:%s", name, name)
	}
	base := uplink
	if n.VLAN != 0 {
		if base, err = vlan(n, uplink); err != nil {
			return Segment{}, err
		}
	}
	own, err := find(bridgeName(n.ID))
	if err != nil {
		return Segment{}, err
	}
	if own != nil && !n.owns(own) {
		return Segment{}, fault.New(fault.Incompatible, "%s is not Godwit's, and the network's bridge would have that name: rename it", own.Attrs().Name)
	}
	if err := free(base, own); err != nil {
		return Segment{}, err
	}
	if mtu := base.Attrs().MTU; n.MTU > mtu {
		return Segment{}, fault.New(fault.Incompatible, "%s has an MTU of %d and the network one of %d: ip link set %s mtu %d", base.Attrs().Name, mtu, n.MTU, base.Attrs().Name, n.MTU)
	}
	if own == nil {
		if own, err = makeBridge(n, base); err != nil {
			return Segment{}, err
		}
	}
	if base.Attrs().MasterIndex != own.Attrs().Index {
		if err := errors.Join(netlink.LinkSetMaster(base, own), netlink.LinkSetUp(uplink), netlink.LinkSetUp(base)); err != nil {
			return Segment{}, fault.New(fault.Internal, "put %s under bridge %s: %w", base.Attrs().Name, own.Attrs().Name, err)
		}
	}
	if own, err = there(own.Attrs().Name); err != nil {
		return Segment{}, err
	}
	return usable(n, own)
}

// free refuses to put an interface under the bridge that something else depends on: an address of the host would be dead with it.
func free(base, own netlink.Link) error {
	name := base.Attrs().Name
	if master := base.Attrs().MasterIndex; master != 0 && (own == nil || master != own.Attrs().Index) {
		other, err := netlink.LinkByIndex(master)
		if err != nil {
			return fault.New(fault.Internal, "master of %s: %w", name, err)
		}
		if other.Type() == "bridge" {
			return fault.New(fault.Incompatible, "%s is a port of %s already: write bridge:%s", name, other.Attrs().Name, other.Attrs().Name)
		}
		return fault.New(fault.Incompatible, "%s is a part of %s already: write uplink:%s", name, other.Attrs().Name, other.Attrs().Name)
	}
	held, err := addresses(base)
	if err != nil {
		return err
	}
	if len(held) > 0 {
		return fault.New(fault.Incompatible,
			"%s holds the host's own address %s, which would be cut off under a bridge: make a bridge over %s, move the address to it, and write bridge:NAME", name, strings.Join(held, ", "), name)
	}
	return nil
}

// vlan makes sure that there is a sub-interface for the network's tag.
func vlan(n Network, uplink netlink.Link) (netlink.Link, error) {
	parent := uplink.Attrs()
	name := fmt.Sprintf("%s.%d", parent.Name, n.VLAN)
	if len(name) > nameMax {
		return nil, fault.New(fault.Incompatible, "%s is too long for the name of an interface: give %s a shorter one", name, parent.Name)
	}
	link, err := find(name)
	if err != nil {
		return nil, err
	}
	if link != nil {
		found, ok := link.(*netlink.Vlan)
		if !ok || found.VlanId != n.VLAN || found.ParentIndex != parent.Index {
			return nil, fault.New(fault.Incompatible, "%s is not VLAN %d of %s: rename it", name, n.VLAN, parent.Name)
		}
		return link, nil
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.ParentIndex = name, parent.Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attributes, VlanId: n.VLAN}); err != nil {
		return nil, vlanRefused(err)
	}
	if link, err = there(name); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetAlias(link, n.alias("vlan")); err != nil {
		return nil, fault.New(fault.Internal, "alias of %s: %w", name, err)
	}
	return link, quiet(link)
}

// vlanRefused says what it means that no VLAN sub-interface could be made.
func vlanRefused(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fault.New(fault.Incompatible, "this kernel has no 802.1Q VLANs: modprobe 8021q, or name a bridge that is on the VLAN already")
	}
	return fault.New(fault.Internal, "VLAN sub-interface: %w", err)
}

// makeBridge makes the own bridge of a network, without ports yet.
func makeBridge(n Network, base netlink.Link) (netlink.Link, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU = bridgeName(n.ID), base.Attrs().MTU
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return nil, fault.New(fault.Internal, "make bridge %s: %w", attributes.Name, err)
	}
	own, err := there(attributes.Name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.LinkSetAlias(own, n.alias("network")), quiet(own), netlink.LinkSetUp(own)); err != nil {
		return nil, fault.New(fault.Internal, "bridge %s: %w", attributes.Name, err)
	}
	return own, nil
}

// quiet keeps the host from taking an IPv6 address on a link that is the guests'. A kernel without IPv6 takes none.
func quiet(link netlink.Link) error {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	err := netlink.LinkSetIP6AddrGenMode(link, none)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// owns reports whether the bridge is the one that was made for the network. One without an alias was made by an agent that was
// killed in that moment.
func (n Network) owns(link netlink.Link) bool {
	alias := link.Attrs().Alias
	return link.Type() == "bridge" && (alias == "" || alias == n.alias("network"))
}

// alias is what a link that is made for the network is marked with.
func (n Network) alias(what string) string {
	return aliasOwn + n.Owner + " " + what + " " + string(n.ID)
}

// Sweep removes the bridges and VLAN sub-interfaces that this owner made for networks that are not in keep, but those that still have
// taps. The uplinks stay as they are. With nothing to keep it leaves the host as it was before.
func Sweep(owner string, keep []Network) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fault.New(fault.Internal, "list of links: %w", err)
	}
	wanted := map[string]bool{}
	for _, n := range keep {
		if n.Carrier.Uplink != "" {
			wanted[n.alias("network")], wanted[n.alias("vlan")] = true, n.VLAN != 0
		}
	}
	var all error
	busy := map[int]bool{} // masters that still have taps
	for _, l := range links {
		if isTap(l) {
			busy[l.Attrs().MasterIndex] = true
		}
	}
	for _, l := range links {
		alias := l.Attrs().Alias
		if !strings.HasPrefix(alias, aliasOwn+owner+" ") || l.Type() != "bridge" && l.Type() != "vlan" || wanted[alias] || busy[l.Attrs().Index] || busy[l.Attrs().MasterIndex] {
			continue
		}
		if err := netlink.LinkDel(l); err != nil {
			all = errors.Join(all, fault.New(fault.Internal, "remove %s: %w", l.Attrs().Name, err))
		}
	}
	return all
}
