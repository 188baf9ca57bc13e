package main

import (
	"os"
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
			return fault.Wrap("screenshot", "", replaceFile(output, resp.Msg.GetPng()))
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "file to write, or - for standard output")
	return cmd
}

// replaceFile writes the file whole or not at all.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fault.New(fault.NotFound, "no file can be made in %s: choose a folder that is there and that you may write to", filepath.Dir(path))
	}
	_, err = f.Write(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644) //nolint:gosec // a picture for whoever asked for it, as any program writes one
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error above is the one that counts
		return fault.New(fault.NoResources, "%w", err)
	}
	return nil
}
