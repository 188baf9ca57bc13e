package main

import (
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newNetwork() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "Make and list networks"}
	cmd.AddCommand(newNetworkCreate(), newNetworkList())
	return cmd
}

func newNetworkCreate() *cobra.Command {
	var subnet, gateway string
	var forwards []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a layer-2 segment that all hosts share", Args: cobra.ExactArgs(1),
		Example: "  godwit network create lan --subnet 10.10.0.0/24 --gateway host-1 --forward 127.0.0.1:2222=10.10.0.10:22",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := &godwitv1.NetworkSpec{Subnet: subnet, Gateway: gateway}
			for _, f := range forwards {
				listen, guest, ok := strings.Cut(f, "=")
				if !ok {
					return fault.New(fault.Invalid, "forward %q is not LISTEN=GUEST, like 127.0.0.1:2222=10.10.0.10:22", f)
				}
				spec.Forwards = append(spec.Forwards, &godwitv1.PortForward{Listen: listen, Guest: guest})
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.hosts.CreateNetwork(cmd.Context(), connect.NewRequest(&godwitv1.CreateNetworkRequest{Id: args[0], Spec: spec}))
			if err != nil {
				return err
			}
			return printNetworks(cmd, []*godwitv1.Network{resp.Msg.GetNetwork()})
		},
	}
	cmd.Flags().StringVar(&subnet, "subnet", "", "IPv4 subnet of the gateway's DHCP, in CIDR form; empty: no gateway")
	cmd.Flags().StringVar(&gateway, "gateway", "", "host that runs DHCP, DNS, NAT and port forwards for the segment")
	cmd.Flags().StringArrayVar(&forwards, "forward", nil, "LISTEN=GUEST: a port of the gateway's host that leads to a guest")
	return cmd
}

func newNetworkList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the networks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.hosts.ListNetworks(cmd.Context(), connect.NewRequest(&godwitv1.ListNetworksRequest{}))
			if err != nil {
				return err
			}
			return printNetworks(cmd, resp.Msg.GetNetworks())
		},
	}
}

func printNetworks(cmd *cobra.Command, networks []*godwitv1.Network) error {
	if done, err := printed(cmd, &godwitv1.ListNetworksResponse{Networks: networks}); done || err != nil {
		return err
	}
	var rows [][]string
	for _, n := range networks {
		var forwards []string
		for _, f := range n.GetSpec().GetForwards() {
			forwards = append(forwards, f.GetListen()+"="+f.GetGuest())
		}
		rows = append(rows, []string{n.GetId(), n.GetSpec().GetSubnet(), n.GetSpec().GetGateway(), strings.Join(forwards, " ")})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "SUBNET", "GATEWAY", "FORWARDS"}, rows)
}
