package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newNetwork() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "Make and list networks"}
	cmd.AddCommand(newNetworkCreate(), newNetworkList(), newNetworkInfo())
	return cmd
}

func newNetworkCreate() *cobra.Command {
	var subnet, gateway, driver string
	var vlan, mtu int32
	var forwards []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a network", Args: cobra.ExactArgs(1),
		Long: `Create makes a network that VMs' NICs can be on.

With the driver "user" it exists between Godwit's own switches, and every host has it. With the driver
"bridge" it is the physical network: a host has it where godwit run --network says which bridge or
uplink carries it. The subnet, its DHCP and its gateway are then the LAN's own.`,
		Example: "  godwit network create lan --subnet 10.10.0.0/24 --gateway host-1 --forward 127.0.0.1:2222=10.10.0.10:22\n" +
			"  godwit network create office --driver bridge --vlan 20",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := &godwitv1.NetworkSpec{Subnet: subnet, Gateway: gateway, Driver: driver, Vlan: vlan, Mtu: mtu}
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
	cmd.Flags().StringVar(&driver, "driver", "user", "what carries it: user (Godwit's switches) or bridge (a Linux bridge of each host)")
	cmd.Flags().Int32Var(&vlan, "vlan", 0, "802.1Q tag on uplinks, for the driver bridge; 0: none")
	cmd.Flags().Int32Var(&mtu, "mtu", 0, "MTU that guests are told, for the driver bridge; 0: their own default")
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
		s := n.GetSpec()
		hosts := "-" // one that was just made: they are about to look
		if have, all := hostsWith(n); all > 0 {
			hosts = fmt.Sprintf("%d/%d", len(have), all)
		}
		rows = append(rows, []string{
			n.GetId(), cmp.Or(s.GetDriver(), "user"), orDash(s.GetVlan()), orDash(s.GetMtu()), hosts,
			s.GetSubnet(), s.GetGateway(), strings.Join(forwardsOf(n), " "),
		})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "DRIVER", "VLAN", "MTU", "HOSTS", "SUBNET", "GATEWAY", "FORWARDS"}, rows)
}

func orDash(n int32) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(int(n))
}

func forwardsOf(n *godwitv1.Network) []string {
	var all []string
	for _, f := range n.GetSpec().GetForwards() {
		all = append(all, f.GetListen()+"="+f.GetGuest())
	}
	return all
}

// hostsWith lists the hosts that have the network, and counts all.
func hostsWith(n *godwitv1.Network) (have []string, all int) {
	for _, h := range n.GetHosts() {
		if h.GetWhy() == "" {
			have = append(have, h.GetHost())
		}
	}
	return have, len(n.GetHosts())
}
