package main

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newVMTemplate() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use: "template VM", Short: "Make a stopped VM a template for clones, or a VM again", Args: cobra.ExactArgs(1),
		Long: `Template makes a stopped VM a template: it cannot start, and its devices do not change, so that thin clones can
stand on its images. --undo makes it a VM again, and like destroying it is refused while there are thin clones.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.SetTemplate(cmd.Context(), connect.NewRequest(&godwitv1.SetTemplateRequest{Vm: args[0], Template: !undo}))
			if err != nil {
				return err
			}
			what := "a template"
			if undo {
				what = "a VM again"
			}
			return printDevice(cmd, resp.Msg.GetVm(), what)
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "make the template a VM again")
	return cmd
}
