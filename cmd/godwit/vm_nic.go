package main

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newVMNIC() *cobra.Command {
	cmd := &cobra.Command{Use: "nic", Short: "Add and remove a VM's network cards, also while it runs"}
	cmd.AddCommand(newVMNICAdd(), newVMNICRemove())
	return cmd
}

func newVMNICAdd() *cobra.Command {
	var mac string
	cmd := &cobra.Command{
		Use: "add VM NETWORK", Short: "Give a VM a card on a network", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.AddNIC(cmd.Context(), connect.NewRequest(&godwitv1.AddNICRequest{
				Vm: args[0], Nic: &godwitv1.NICRequest{Network: args[1], Mac: strings.ToLower(mac)},
			}))
			if err != nil {
				return err
			}
			nics := resp.Msg.GetVm().GetSpec().GetNics()
			last := nics[len(nics)-1]
			return printDevice(cmd, resp.Msg.GetVm(), "has "+last.GetName()+", "+last.GetMac()+" on "+last.GetNetwork())
		},
	}
	cmd.Flags().StringVar(&mac, "mac", "", "its MAC address; empty: a random one")
	return cmd
}

func newVMNICRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm VM NIC", Short: "Take a card from a VM", Args: cobra.ExactArgs(2),
		Long: `Rm takes a network card from a VM. The guest of a running VM is asked to let go of it and has 10 s to
do so; a card that the VM was made with can only be taken from a stopped one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.RemoveNIC(cmd.Context(), connect.NewRequest(&godwitv1.RemoveNICRequest{Vm: args[0], Nic: args[1]}))
			if err != nil {
				return err
			}
			return printDevice(cmd, resp.Msg.GetVm(), "no longer has "+args[1])
		},
	}
}

// printDevice confirms a change of a VM's devices in one line, or prints the VM as JSON.
func printDevice(cmd *cobra.Command, vm *godwitv1.VM, what string) error {
	if done, err := printed(cmd, vm); done || err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", vm.GetSpec().GetName(), what)
	return err
}
