package main

import (
	"fmt"
	"maps"
	"strings"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// carriers say what carries which bridge network on this host.
type carriers map[inventory.NetworkID]bridge.Carrier

// networkFlag is how a host is told what carries bridge networks on it.
func networkFlag(cmd *cobra.Command, networks *[]string) {
	cmd.Flags().StringSliceVar(networks, "network", nil,
		"NAME=bridge:LINK or NAME=uplink:LINK: what carries a bridge network on this host; repeatable")
}

// parseCarriers reads the values of networkFlag.
func parseCarriers(networks []string) (carriers, error) {
	all := carriers{}
	var bad []string
	for _, text := range networks {
		name, carrier, ok := strings.Cut(text, "=")
		if !ok {
			bad = append(bad, fmt.Sprintf("network %q is not NAME=bridge:LINK or NAME=uplink:LINK, like lan=bridge:br0", text))
			continue
		}
		if err := inventory.CheckName("network", name); err != nil {
			bad = append(bad, err.Error())
		}
		c, err := bridge.ParseCarrier(carrier)
		if err != nil {
			bad = append(bad, fmt.Sprintf("network %s: %v", name, err))
		}
		if _, twice := all[inventory.NetworkID(name)]; twice {
			bad = append(bad, fmt.Sprintf("network %s is named twice", name))
		}
		all[inventory.NetworkID(name)] = c
	}
	return all, fault.Refuse(fault.Invalid, bad)
}

// carriersOf returns what carries bridge networks on this host: what the file says, and before that what the command line does.
func carriersOf(set *config.Config, networks []string) (carriers, error) {
	given, err := parseCarriers(networks)
	if err != nil {
		return nil, err
	}
	all := carriers{}
	for name, n := range set.Networks {
		all[inventory.NetworkID(name)] = bridge.Carrier{Bridge: n.Bridge, Uplink: n.Uplink}
	}
	maps.Copy(all, given)
	return all, nil
}
