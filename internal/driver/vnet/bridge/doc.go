// Package bridge puts guests on the physical network: a tap device for each NIC, as a port of a Linux bridge of this host. It is
// the driver of networks whose frames the host's own switch carries to the LAN, where package vnet is the one of networks that
// exist between Godwit's switches only.
//
//	guest ─ virtio ─ QEMU ─ tap ─┐
//	guest ─ virtio ─ QEMU ─ tap ─┴ bridge ─ uplink ─ cable ─ somebody else's switch
//
// A Carrier says what a network has on this host: a bridge that the administrator made, which is used and never changed but for
// its ports, or an uplink, over which this package makes a bridge of its own ("gw-lan"), with a VLAN sub-interface between them
// when the network has a tag.
//
// # Taps
//
// A tap is made by whoever has the privilege and given to QEMU as an open file. It is not persistent: the kernel removes it with
// its last open file, which is QEMU's, so it lives as long as the VM here, over restarts of Godwit, and no tap is ever left over.
// Its name is made of the VM's id and the NIC's number (TapName); nothing has to be remembered to find it. It takes the MTU of the
// bridge, since a bridge takes the smallest of its ports' for all of them, and no address of its own.
//
// # A VM that moves
//
// The tap of the target is down until the guest runs there. QEMU announces an incoming guest when its memory is loaded, while the
// source may still take it back; on a tap that is down nobody hears that. Arrive takes it up, tells the own bridge where the address
// is now, and announces it to the others by reverse ARP (RFC 903) and, where its IP addresses are known, by ARP announcements
// (RFC 5227, section 3). Both leave by way of the bridge, so that every switch beyond the uplink learns. Leave takes the source's
// tap down when its guest has stopped; Return takes it up again and announces it, for a guest that stays after all.
//
// Frames that reach a tap that is down are lost, as with a cable that is unplugged for so long: TCP sends them again, and others
// have to. Package vnet loses none; a switch that is not ours cannot be told to wait.
//
// The package needs CAP_NET_ADMIN and CAP_NET_RAW, and works in the network namespace of the thread that calls it.
package bridge
