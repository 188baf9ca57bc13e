package main

import (
	"net/netip"
	"strings"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

// guest says in one line what the guest's agent says.
func guest(g *godwitv1.Guest) string {
	if g.GetSeen() == nil {
		return ""
	}
	parts := []string{}
	for _, part := range []string{g.GetHostname(), g.GetSystem()} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	agent := "agent " + g.GetVersion()
	if !g.GetAgent() {
		agent += ", which does not answer now"
	}
	return strings.Join(append(parts, agent), ", ")
}

// address is the VM's first address: what its guest says of the VM's NICs in their order, IPv4 first, else its heartbeat's.
func address(vm *godwitv1.VM) string {
	for _, want := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
		for _, n := range vm.GetSpec().GetNics() {
			for _, text := range ofNIC(n, vm.GetStatus().GetGuest()) {
				if prefix, err := netip.ParsePrefix(text); err == nil && want(prefix.Addr()) {
					return prefix.Addr().String()
				}
			}
		}
	}
	return vm.GetStatus().GetHeartbeat().GetIp()
}

// addresses lists what the guest says of a NIC.
func addresses(n *godwitv1.NIC, g *godwitv1.Guest) string {
	if all := ofNIC(n, g); len(all) > 0 {
		return ", " + strings.Join(all, " ")
	}
	return ""
}

// ofNIC finds the addresses of the guest's card with the NIC's MAC address; others, like bridges in the guest, are not the VM's.
func ofNIC(n *godwitv1.NIC, g *godwitv1.Guest) []string {
	for _, known := range g.GetNics() {
		if known.GetMac() == n.GetMac() && len(known.GetAddresses()) > 0 {
			return known.GetAddresses()
		}
	}
	return nil
}

func firmware(s *godwitv1.VMSpec) string {
	if s.GetBoot().GetUefi() {
		return "UEFI, variables in " + s.GetBoot().GetVars().GetPath()
	}
	return ""
}

func display(s *godwitv1.VMSpec) string {
	if s.GetDisplay() {
		return "godwit vm console " + s.GetName() + " --vnc"
	}
	return ""
}
