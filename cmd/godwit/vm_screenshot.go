package main

import (
	"errors"
	"io/fs"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newVMScreenshot() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "screenshot VM --output FILE.png", Short: "Take a picture of a VM's display", Args: cobra.ExactArgs(1),
		Long: `Screenshot writes a picture of the VM's display to a file, as PNG. A file of that name is replaced;
"-" is standard output. The VM notices nothing.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				return fault.New(fault.Invalid, "say where the picture goes: --output FILE.png, or - for standard output")
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.ScreenshotVM(cmd.Context(), connect.NewRequest(&godwitv1.ScreenshotVMRequest{Vm: args[0]}))
			if err != nil {
				return err
			}
			if output == "-" {
				_, err := cmd.OutOrStdout().Write(resp.Msg.GetPng())
				return err
			}
			err = replace(output, resp.Msg.GetPng(), 0o644)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return fault.New(fault.NotFound, "screenshot: no file can be made in %s: choose a folder that is there and that you may write to", filepath.Dir(output))
			}
			if err != nil {
				return fault.New(fault.NoResources, "screenshot: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "file to write, or - for standard output")
	return cmd
}
