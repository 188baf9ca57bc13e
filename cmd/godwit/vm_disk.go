package main

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newVMDisk() *cobra.Command {
	cmd := &cobra.Command{Use: "disk", Short: "Add, remove and grow a VM's disks, also while it runs"}
	cmd.AddCommand(newVMDiskAdd(), newVMDiskRemove(), newVMDiskGrow())
	return cmd
}

func newVMDiskAdd() *cobra.Command {
	var size, disk, datastore, format string
	cmd := &cobra.Command{
		Use: "add VM", Short: "Give a VM a disk", Args: cobra.ExactArgs(1),
		Long: `Add gives a VM a new disk of --size, or the existing image --disk. A running VM has it at once: its
guest sees a disk that was plugged in.`,
		Example: `  godwit vm disk add web-1 --size 20G
  godwit vm disk add web-1 --disk data.qcow2@shared`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &godwitv1.AddDiskRequest{Vm: args[0], Disk: &godwitv1.DiskRequest{Datastore: datastore, Format: format}}
			switch {
			case (size == "") == (disk == ""):
				return usageError{fault.New(fault.Invalid, "say how large the new disk is with --size, or which image it is with --disk")}
			case size != "":
				bytes, err := diskSize("--size", size)
				if err != nil {
					return err
				}
				req.Disk.Size = bytes
			default:
				file := at(disk)
				req.Disk.Path = file.GetPath()
				if file.GetDatastore() != "" {
					req.Disk.Datastore = file.GetDatastore()
				}
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.AddDisk(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			disks := resp.Msg.GetVm().GetSpec().GetDisks()
			return printDevice(cmd, resp.Msg.GetVm(), "has "+disks[len(disks)-1].GetName()+", "+disks[len(disks)-1].GetFile().GetPath())
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "size of a new disk, like 20G")
	cmd.Flags().StringVar(&disk, "disk", "", "PATH[@DATASTORE] of an existing image")
	cmd.Flags().StringVar(&datastore, "datastore", "", "datastore of the image; empty: the host's first")
	cmd.Flags().StringVar(&format, "format", "", "raw or qcow2; empty: qcow2")
	return cmd
}

// diskSize reads the size of a disk, which is never 0.
func diskSize(flag, text string) (int64, error) {
	bytes, err := inventory.ParseBytes(text)
	if err != nil {
		return 0, fault.Wrap(flag, "", err)
	}
	if bytes <= 0 {
		return 0, fault.New(fault.Invalid, "%s %s: a disk of size 0 is of no use: say how large it is, like 20G", flag, text)
	}
	return int64(bytes), nil
}

func newVMDiskRemove() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use: "rm VM DISK", Short: "Take a disk from a VM; its image stays unless --delete", Args: cobra.ExactArgs(2),
		Long: `Rm takes a disk from a VM. The guest of a running VM is asked to let go of it and has 10 s to do so;
a disk that the VM was made with can only be taken from a stopped one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.RemoveDisk(cmd.Context(), connect.NewRequest(&godwitv1.RemoveDiskRequest{Vm: args[0], Disk: args[1], Delete: remove}))
			if err != nil {
				return err
			}
			return printDevice(cmd, resp.Msg.GetVm(), "no longer has "+args[1])
		},
	}
	cmd.Flags().BoolVar(&remove, "delete", false, "delete its image too")
	return cmd
}

func newVMDiskGrow() *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use: "grow VM DISK --size SIZE", Short: "Make a disk larger, also of a running VM; it never shrinks", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == "" {
				return usageError{fault.New(fault.Invalid, "say how large the disk is to be with --size")}
			}
			bytes, err := diskSize("--size", size)
			if err != nil {
				return err
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.GrowDisk(cmd.Context(), connect.NewRequest(&godwitv1.GrowDiskRequest{Vm: args[0], Disk: args[1], Size: bytes}))
			if err != nil {
				return err
			}
			return printDevice(cmd, resp.Msg.GetVm(), args[1]+" has "+inventory.Bytes(bytes).String())
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "its new size, like 40G")
	return cmd
}
