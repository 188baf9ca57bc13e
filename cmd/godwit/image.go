package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Bring in, clone and remove disk images on datastores"}
	cmd.AddCommand(newImageList(), newImageInfo(), newImageCreate(), newImageImport(), newImageClone(), newImageGrow(), newImageDelete())
	return cmd
}

// printImage confirms a change in one line, or prints the image as JSON.
func printImage(cmd *cobra.Command, i *godwitv1.Image) error {
	if done, err := printed(cmd, i); done || err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s@%s: %s, %s\n", i.GetFile().GetPath(), i.GetDatastore(), kindOf(i), size(i.GetSize()))
	return err
}

// kindOf is an image's format, or a word for a file that is no image.
func kindOf(i *godwitv1.Image) string {
	if i.GetFormat() == "" {
		return "no image"
	}
	return i.GetFormat()
}

func newImageList() *cobra.Command {
	return &cobra.Command{
		Use: "ls [DATASTORE]", Short: "List the files of a datastore, or of all that the host has", Args: cobra.MaximumNArgs(1),
		Long: `Ls lists what is on a datastore: disk images, seeds, and files that are no images. USED is the space that a
file takes; a thin clone has the image in BACKING below it and holds only what differs. A raw image has no
mark of its own: it is known by its name (.raw, .img, .iso) or by the VM that has it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.images.ListImages(cmd.Context(), connect.NewRequest(&godwitv1.ListImagesRequest{Datastore: strings.Join(args, "")}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, i := range resp.Msg.GetImages() {
				virtual := ""
				if i.GetFormat() != "" {
					virtual = size(i.GetSize())
				}
				rows = append(rows, []string{
					i.GetFile().GetPath(), i.GetDatastore(), kindOf(i), virtual, size(i.GetUsed()), i.GetVm(), i.GetBacking().GetPath(),
				})
			}
			return table(cmd.OutOrStdout(), []string{"PATH", "DATASTORE", "FORMAT", "SIZE", "USED", "VM", "BACKING"}, rows)
		},
	}
}

func newImageInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info PATH[@DATASTORE]", Short: "Show one image", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.images.GetImage(cmd.Context(), connect.NewRequest(&godwitv1.GetImageRequest{File: at(args[0])}))
			if err != nil {
				return err
			}
			i := resp.Msg.GetImage()
			if done, err := printed(cmd, i); done || err != nil {
				return err
			}
			return list(cmd.OutOrStdout(), [][2]string{
				{"path", i.GetFile().GetPath()},
				{"datastore", i.GetDatastore() + " (" + i.GetFile().GetDatastore() + ")"},
				{"format", kindOf(i)},
				{"size", size(i.GetSize())},
				{"used", size(i.GetUsed())},
				{"backing", i.GetBacking().GetPath()},
				{"vm", i.GetVm()},
				{"changed", i.GetChanged().AsTime().Local().Format(time.DateTime)},
			})
		},
	}
}

// sizeArg reads the argument of the given name.
func sizeArg(name, text string) (int64, error) {
	n, err := inventory.ParseBytes(text)
	if err == nil && n == 0 {
		err = fault.New(fault.Invalid, "an image of size 0 is of no use: say how large it is, like 20G")
	}
	return int64(n), fault.Wrap(name, "", err)
}

func newImageCreate() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "create PATH[@DATASTORE] SIZE", Short: "Make an empty image", Args: cobra.ExactArgs(2),
		Example: "  godwit image create data.qcow2@shared 100G",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := sizeArg("SIZE", args[1])
			if err != nil {
				return err
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.images.CreateImage(cmd.Context(), connect.NewRequest(&godwitv1.CreateImageRequest{File: at(args[0]), Format: format, Size: n}))
			if err != nil {
				return err
			}
			return printImage(cmd, resp.Msg.GetImage())
		},
	}
	cmd.Flags().StringVar(&format, "format", "qcow2", "qcow2 or raw; neither takes space that nobody has written to")
	return cmd
}

func newImageImport() *cobra.Command {
	var format, sourceFormat, sum string
	cmd := &cobra.Command{
		Use: "import SOURCE PATH[@DATASTORE]", Short: "Bring in an image from a file or a URL", Args: cobra.ExactArgs(2),
		Long: `Import copies a file of the host that is asked, or downloads an http or https URL, checks it and converts it:
from qcow2, vmdk, vdi, vhdx or vpc (.vhd) by what its header says, from raw only if --source-format says so.
An image that needs other files (a backing file, an extent) is refused, since those could be files of the host.
Nothing is overwritten, and an import that fails or is interrupted leaves nothing.`,
		Example: `  godwit image import https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2 debian-12.qcow2@shared
  godwit image import ./old-server.vmdk old-server.qcow2@shared
  godwit image import ./disk.img disk.qcow2 --source-format raw`,
		RunE: func(cmd *cobra.Command, args []string) error {
			source := args[0]
			if !strings.Contains(source, "://") {
				whole, err := filepath.Abs(source)
				if err != nil {
					return err
				}
				source = whole
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.images.ImportImage(cmd.Context(), connect.NewRequest(&godwitv1.ImportImageRequest{
				File: at(args[1]), Format: format, Source: source, SourceFormat: sourceFormat, Sha256: strings.ToLower(sum),
			}))
			if err != nil {
				return err
			}
			return printImage(cmd, resp.Msg.GetImage())
		},
	}
	cmd.Flags().StringVar(&format, "format", "qcow2", "format of the new image: qcow2 or raw")
	cmd.Flags().StringVar(&sourceFormat, "source-format", "", "format of the source, raw has to be said; empty: what its header says")
	cmd.Flags().StringVar(&sum, "sha256", "", "SHA-256 sum that the source must have, in hexadecimal")
	return cmd
}

func newImageClone() *cobra.Command {
	var full bool
	var format string
	cmd := &cobra.Command{
		Use: "clone FROM[@DATASTORE] PATH[@DATASTORE]", Short: "Make a thin clone of an image, or a full copy", Args: cobra.ExactArgs(2),
		Long: `Clone makes an image that holds only what is written to it and reads the rest from FROM, which nobody may
write to, grow or delete from then on. With --full it is a copy that stands alone, and may be on another datastore.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.images.CloneImage(cmd.Context(), connect.NewRequest(&godwitv1.CloneImageRequest{
				From: at(args[0]), File: at(args[1]), Full: full, Format: format,
			}))
			if err != nil {
				return err
			}
			return printImage(cmd, resp.Msg.GetImage())
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "copy the image")
	cmd.Flags().StringVar(&format, "format", "", "format of a full copy, qcow2 or raw; empty: the original's")
	return cmd
}

func newImageGrow() *cobra.Command {
	return &cobra.Command{
		Use: "grow PATH[@DATASTORE] SIZE", Short: "Make an image larger that no VM has", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := sizeArg("SIZE", args[1])
			if err != nil {
				return err
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.images.GrowImage(cmd.Context(), connect.NewRequest(&godwitv1.GrowImageRequest{File: at(args[0]), Size: n}))
			if err != nil {
				return err
			}
			return printImage(cmd, resp.Msg.GetImage())
		},
	}
}

func newImageDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete PATH[@DATASTORE]", Short: "Delete a file that no VM and no thin clone needs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			if _, err := c.images.DeleteImage(cmd.Context(), connect.NewRequest(&godwitv1.DeleteImageRequest{File: at(args[0])})); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: deleted\n", args[0])
			return err
		},
	}
}
