package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newHostRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "remove HOST", Aliases: []string{"rm"}, Short: "Take a host or witness out of the cluster", Args: cobra.ExactArgs(1),
		Long: `Remove gives the host's member of the store to another host, takes back its certificates, and forgets it. It is
refused while the host has VMs. The machine can join again, also under the same name, with a fresh data
folder. A host that is dead goes with --force, once it is proven dead: fenced, or godwit host confirm-dead.
Ctrl-C leaves the order standing; godwit task cancel takes it back while the host is still needed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			if _, err := c.members.RemoveHost(cmd.Context(), connect.NewRequest(&godwitv1.RemoveHostRequest{Host: args[0], Force: force})); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "host %s is out of the cluster: its data folder is of no use any more\n", args[0])
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "the host is dead, and that is proven")
	return cmd
}
