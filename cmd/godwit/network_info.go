package main

import (
	"cmp"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newNetworkInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info NAME", Short: "Show a network, which hosts have it, and why others do not", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.hosts.ListNetworks(cmd.Context(), connect.NewRequest(&godwitv1.ListNetworksRequest{}))
			if err != nil {
				return err
			}
			all := resp.Msg.GetNetworks()
			i := slices.IndexFunc(all, func(n *godwitv1.Network) bool { return n.GetId() == args[0] })
			if i < 0 {
				return fault.New(fault.NotFound, "no network %q: see godwit network ls", args[0])
			}
			return printNetwork(cmd, all[i])
		},
	}
}

func printNetwork(cmd *cobra.Command, n *godwitv1.Network) error {
	if done, err := printed(cmd, n); done || err != nil {
		return err
	}
	s := n.GetSpec()
	pairs := [][2]string{
		{"name", n.GetId()},
		{"driver", cmp.Or(s.GetDriver(), "user")},
		{"vlan", orDash(s.GetVlan())},
		{"mtu", orDash(s.GetMtu())},
		{"subnet", s.GetSubnet()},
		{"gateway", s.GetGateway()},
	}
	for _, f := range forwardsOf(n) {
		pairs = append(pairs, [2]string{"forward", f})
	}
	for _, h := range n.GetHosts() {
		said := "has it"
		if why := h.GetWhy(); why != "" {
			said = "lacks it: " + why
		}
		pairs = append(pairs, [2]string{"host " + h.GetHost(), said})
	}
	return list(cmd.OutOrStdout(), pairs)
}
