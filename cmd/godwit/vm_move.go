package main

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newVMMove() *cobra.Command {
	var host, datastore string
	cmd := &cobra.Command{
		Use: "move VM", Short: "Move a VM that is off to another host or datastore", Args: cobra.ExactArgs(1),
		Long: `Move brings a VM that is powered off to the host --to, its disks to the datastore --datastore, or both.
On a shared datastore nothing is copied. Else the files are copied, over the network if the hosts have
no datastore in common, with a checksum; then the VM is switched over in one step, and the originals
go. Until that step it is where it was. Run the command again after whatever went wrong: it removes
what was left and completes. A running VM is moved with godwit vm migrate.`,
		Example: `  godwit vm move web-1 --to host-2
  godwit vm move web-1 --datastore fast
  godwit vm move web-1 --to host-2 --datastore local-2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if host == "" && datastore == "" {
				return usageError{fault.New(fault.Invalid, "say where to: a host with --to, a datastore with --datastore, or both")}
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.MoveVM(cmd.Context(), connect.NewRequest(&godwitv1.MoveVMRequest{Vm: args[0], Host: host, Datastore: datastore}))
			if err != nil {
				return err
			}
			return printVM(cmd, resp.Msg.GetVm())
		},
	}
	cmd.Flags().StringVar(&host, "to", "", "host to move to; empty: it stays on its host")
	cmd.Flags().StringVar(&datastore, "datastore", "", "datastore of that host, by name or id; empty: the disks stay where they are")
	return cmd
}
