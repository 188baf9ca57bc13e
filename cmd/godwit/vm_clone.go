package main

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newVMClone() *cobra.Command {
	var full bool
	var datastore string
	var keys []string
	cmd := &cobra.Command{
		Use: "clone SOURCE NEW", Short: "Make a VM like a stopped one, or of a template", Args: cobra.ExactArgs(2),
		Long: `Clone makes a VM like SOURCE, with disks, identity and MAC addresses of its own. The disks of a stopped VM are
copied. Those of a template become thin clones, which take a second to make and stand on the template's
images; --full copies them too. The clone is off.`,
		Example: `  godwit vm clone web-1 web-2
  godwit vm template debian
  godwit vm clone debian web-3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &godwitv1.CloneVMRequest{Vm: args[0], Name: args[1], Full: full, Datastore: datastore}
			for _, key := range keys {
				text, err := readKeys(key)
				if err != nil {
					return err
				}
				if req.Seed == nil {
					req.Seed = &godwitv1.Seed{}
				}
				req.Seed.SshKeys = append(req.Seed.SshKeys, text...)
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.CloneVM(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return printVM(cmd, resp.Msg.GetVm())
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "copy the disks of a template instead of thin clones")
	cmd.Flags().StringVar(&datastore, "datastore", "", "datastore of the copies; empty: where the originals are")
	cmd.Flags().StringArrayVar(&keys, "ssh-key", nil, "public SSH key for the clone's cloud-init, or a file with some; repeatable")
	return cmd
}
