package main

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newVMSet() *cobra.Command {
	var cpus int
	var memory string
	var display, noDisplay bool
	cmd := &cobra.Command{
		Use: "set VM", Short: "Change vCPUs, memory or display of a stopped VM", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &godwitv1.SetVMRequest{Vm: args[0]}
			flags := cmd.Flags()
			if !flags.Changed("cpus") && memory == "" && !display && !noDisplay {
				return usageError{fault.New(fault.Invalid, "say what to change: --cpus, --memory, --display or --no-display")}
			}
			if display && noDisplay {
				return usageError{fault.New(fault.Invalid, "--display and --no-display exclude each other")}
			}
			if flags.Changed("cpus") {
				if cpus < 1 || cpus > inventory.CPUsMax {
					return fault.New(fault.Invalid, "%d CPUs are not possible: take 1 to %d", cpus, inventory.CPUsMax)
				}
				req.Cpus = int32(cpus) //nolint:gosec // bounded above
			}
			if memory != "" {
				bytes, err := inventory.ParseBytes(memory)
				if err != nil {
					return fault.Wrap("--memory", "", err)
				}
				if bytes < inventory.MemoryMin {
					return fault.New(fault.Invalid, "memory of %v is not possible: take %v to %v", bytes, inventory.MemoryMin, inventory.MemoryMax)
				}
				req.Memory = int64(bytes)
			}
			if display || noDisplay {
				req.Display = &display
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.SetVM(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return printVM(cmd, resp.Msg.GetVm())
		},
	}
	cmd.Flags().IntVar(&cpus, "cpus", 0, "number of vCPUs")
	cmd.Flags().StringVar(&memory, "memory", "", "memory, like 512M or 2G")
	cmd.Flags().BoolVar(&display, "display", false, "give it a screen")
	cmd.Flags().BoolVar(&noDisplay, "no-display", false, "take its screen away")
	return cmd
}
