package main

import (
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// createFlags are the words of "vm create" before they are understood.
type createFlags struct {
	cpus                              int
	memory, cpuModel, host            string
	firmware, kernel, initrd, cmdline string
	disks, nics                       []string
	uefi, display, displaySaid        bool
	image, size, datastore            string
	full, start                       bool
	seed                              seedFlags
}

func newVMCreate() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a VM", Args: cobra.ExactArgs(1),
		Long: `Create makes a VM, stopped unless --start is given. With --image its first disk is a thin clone of that image,
which stays as it is and may have any number of clones, and cloud-init in it finds a seed: a small read-only
disk with the host name, SSH keys and network configuration. No password is set. Seed and clone go with the VM
(vm destroy --delete-disks; the seed always does). A VM that cannot be made, or started, leaves nothing.`,
		Example: `  godwit vm create web-0 --image debian-12.qcow2 --size 20G --cpus 2 --memory 2G --nic lan --ssh-key ~/.ssh/id_ed25519.pub --start
  godwit vm create web-1 --cpus 2 --memory 2G --disk size=20G --nic lan
  godwit vm create web-2 --memory 1G --disk web-2.qcow2@shared --nic lan,mac=52:54:00:12:34:56
  godwit vm create tiny --memory 64M --kernel vmlinuz@shared --initrd initrd@shared`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.displaySaid = cmd.Flags().Changed("display")
			req, err := f.request(args[0])
			if err != nil {
				return err
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.CreateVM(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return printVM(cmd, resp.Msg.GetVm())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&f.cpus, "cpus", 1, "number of vCPUs")
	flags.StringVar(&f.memory, "memory", "1G", "memory, like 512M or 2G")
	flags.StringVar(&f.cpuModel, "cpu-model", "", "named CPU model of QEMU; empty: the best that every host of the cluster can run")
	flags.StringVar(&f.host, "host", "", "host to put the VM on; empty: the one that is asked")
	flags.StringArrayVar(&f.disks, "disk", nil, "PATH[@DATASTORE][,format=raw|qcow2] of an existing image, or size=20G[,format=F][,path=P] to make one; repeatable")
	flags.StringArrayVar(&f.nics, "nic", nil, "NETWORK[,mac=MAC]; repeatable")
	flags.StringVar(&f.kernel, "kernel", "", "PATH[@DATASTORE] of a kernel to boot directly")
	flags.StringVar(&f.initrd, "initrd", "", "PATH[@DATASTORE] of its initial RAM disk")
	flags.StringVar(&f.cmdline, "cmdline", "", "kernel command line")
	flags.BoolVar(&f.uefi, "uefi", false, "start from the host's UEFI firmware instead of BIOS")
	flags.BoolVar(&f.display, "display", false, "give the VM a screen, for VNC and screenshots (default true for a VM without --kernel and --firmware)")
	flags.StringVar(&f.firmware, "firmware", "", "PATH[@DATASTORE] of a firmware image instead of the built-in BIOS")
	flags.StringVar(&f.image, "image", "", "PATH[@DATASTORE] of an image, of which the first disk becomes a clone")
	flags.BoolVar(&f.full, "full", false, "copy the image instead of a thin clone")
	flags.StringVar(&f.size, "size", "", "size of that disk, like 20G; empty: the image's")
	flags.StringVar(&f.datastore, "datastore", "", "datastore of the disks that are made; empty: the image's, or the host's first")
	flags.BoolVar(&f.start, "start", false, "start the VM once it is made")
	f.seed.add(cmd)
	return cmd
}

func (f createFlags) request(name string) (*godwitv1.CreateVMRequest, error) {
	memory, err := inventory.ParseBytes(f.memory)
	if err != nil {
		return nil, fault.Wrap("--memory", "", err)
	}
	req := &godwitv1.CreateVMRequest{
		Name: name, Cpus: int32(min(max(f.cpus, 0), inventory.CPUsMax+1)), Memory: int64(memory), //nolint:gosec // clamped
		CpuModel: f.cpuModel, Host: f.host, Boot: &godwitv1.Boot{Cmdline: f.cmdline},
		Uefi: f.uefi, Display: f.display || !f.displaySaid && f.kernel == "" && f.firmware == "",
		Image: f.image, Full: f.full, Datastore: f.datastore, Start: f.start,
	}
	if f.size != "" {
		if req.Size, err = sizeArg("--size", f.size); err != nil {
			return nil, err
		}
	}
	if req.Seed, err = f.seed.request(f.image); err != nil {
		return nil, err
	}
	if f.kernel != "" {
		req.Boot.Kernel = at(f.kernel)
	}
	if f.initrd != "" {
		req.Boot.Initrd = at(f.initrd)
	}
	if f.firmware != "" {
		req.Boot.Firmware = at(f.firmware)
	}
	for _, text := range f.disks {
		disk, err := parseDisk(text)
		if err != nil {
			return nil, err
		}
		req.Disks = append(req.Disks, disk)
	}
	for _, text := range f.nics {
		nic, err := parseNIC(text)
		if err != nil {
			return nil, err
		}
		req.Nics = append(req.Nics, nic)
	}
	return req, nil
}

func parseDisk(text string) (*godwitv1.DiskRequest, error) {
	disk := &godwitv1.DiskRequest{}
	for i, part := range strings.Split(text, ",") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case !ok && i == 0:
			file := at(part)
			disk.Path, disk.Datastore = file.GetPath(), file.GetDatastore()
		case key == "path":
			file := at(value)
			disk.Path, disk.Datastore = file.GetPath(), file.GetDatastore()
		case key == "size":
			size, err := inventory.ParseBytes(value)
			if err != nil {
				return nil, fault.Wrap("--disk", text, err)
			}
			if size == 0 {
				return nil, fault.New(fault.Invalid, "--disk %s: a disk of size 0 is of no use: say how large it is, like size=20G", text)
			}
			disk.Size = int64(size)
		case key == "format":
			disk.Format = value
		case key == "datastore":
			disk.Datastore = value
		default:
			return nil, fault.New(fault.Invalid, "--disk %s: %q is not understood: take PATH[@DATASTORE], size=, format=, path= or datastore=", text, part)
		}
	}
	if disk.GetPath() == "" && disk.GetSize() == 0 {
		return nil, fault.New(fault.Invalid, "--disk %s names neither an image nor a size", text)
	}
	return disk, nil
}

func parseNIC(text string) (*godwitv1.NICRequest, error) {
	network, rest, more := strings.Cut(text, ",")
	nic := &godwitv1.NICRequest{Network: network}
	if more {
		mac, ok := strings.CutPrefix(rest, "mac=")
		if !ok {
			return nil, fault.New(fault.Invalid, "--nic %s: %q is not understood: take NETWORK[,mac=MAC]", text, rest)
		}
		nic.Mac = strings.ToLower(mac)
	}
	return nic, nil
}
