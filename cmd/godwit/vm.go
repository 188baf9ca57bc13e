package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newVM() *cobra.Command {
	cmd := &cobra.Command{Use: "vm", Short: "Make, run and migrate virtual machines"}
	cmd.AddCommand(newVMCreate(), newVMList(), newVMInfo(), newVMStop(), newVMDestroy(), newVMConsole(), newVMMigrate())
	cmd.AddCommand(newVMClone(), newVMTemplate(), newVMMove(), newVMDisk(), newVMNIC(), newVMSet(), newVMScreenshot())
	simple := func(use, short string, call func(context.Context, *client, string) (*godwitv1.VM, error)) {
		cmd.AddCommand(&cobra.Command{
			Use: use + " VM", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := newClient(cmd)
				if err != nil {
					return err
				}
				vm, err := call(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				return printVM(cmd, vm)
			},
		})
	}
	simple("start", "Start a stopped VM on its host", func(ctx context.Context, c *client, name string) (*godwitv1.VM, error) {
		resp, err := c.vms.StartVM(ctx, connect.NewRequest(&godwitv1.StartVMRequest{Vm: name}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetVm(), nil
	})
	simple("reset", "Reset a running VM, as its reset button would", func(ctx context.Context, c *client, name string) (*godwitv1.VM, error) {
		resp, err := c.vms.ResetVM(ctx, connect.NewRequest(&godwitv1.ResetVMRequest{Vm: name}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetVm(), nil
	})
	simple("pause", "Stop a VM's vCPUs; its memory stays", func(ctx context.Context, c *client, name string) (*godwitv1.VM, error) {
		resp, err := c.vms.PauseVM(ctx, connect.NewRequest(&godwitv1.PauseVMRequest{Vm: name}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetVm(), nil
	})
	simple("resume", "Let a paused VM run on", func(ctx context.Context, c *client, name string) (*godwitv1.VM, error) {
		resp, err := c.vms.ResumeVM(ctx, connect.NewRequest(&godwitv1.ResumeVMRequest{Vm: name}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetVm(), nil
	})
	return cmd
}

// printVM confirms a change in one line, or prints the VM as JSON.
func printVM(cmd *cobra.Command, vm *godwitv1.VM) error {
	if done, err := printed(cmd, vm); done || err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s on %s\n", vm.GetSpec().GetName(), vm.GetStatus().GetState(), vm.GetRun().GetOwner())
	return err
}

func newVMList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the VMs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.ListVMs(cmd.Context(), connect.NewRequest(&godwitv1.ListVMsRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, vm := range resp.Msg.GetVms() {
				rows = append(rows, []string{
					vm.GetSpec().GetName(), vm.GetId(), vmState(vm), vm.GetRun().GetOwner(),
					fmt.Sprint(vm.GetSpec().GetCpus()), size(vm.GetSpec().GetMemory()), address(vm),
				})
			}
			return table(cmd.OutOrStdout(), []string{"NAME", "ID", "STATE", "HOST", "CPUS", "MEMORY", "IP"}, rows)
		},
	}
}

func newVMInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info VM", Short: "Show one VM: state, heartbeat, usage, disks, NICs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.GetVM(cmd.Context(), connect.NewRequest(&godwitv1.GetVMRequest{Vm: args[0]}))
			if err != nil {
				return err
			}
			vm := resp.Msg.GetVm()
			if done, err := printed(cmd, vm); done || err != nil {
				return err
			}
			spec, status := vm.GetSpec(), vm.GetStatus()
			pairs := [][2]string{
				{"name", spec.GetName()},
				{"id", vm.GetId()},
				{"state", status.GetState() + since(status)},
				{"detail", status.GetDetail()},
				{"blocked", vm.GetPlace().GetBlocked() + when(vm.GetPlace().GetSince())},
				{"restarts", restarts(vm.GetPlace())},
				{"host", vm.GetRun().GetOwner()},
				{"generation", fmt.Sprint(vm.GetRun().GetGeneration())},
				{"pid", pid(status.GetPid())},
				{"cpus", fmt.Sprintf("%d %s", spec.GetCpus(), spec.GetCpuModel())},
				{"memory", size(spec.GetMemory())},
				{"machine", spec.GetMachine()},
				{"heartbeat", heartbeat(status.GetHeartbeat())},
				{"firmware", firmware(spec)},
				{"display", display(spec)},
				{"guest", guest(status.GetGuest())},
				{"ip", address(vm)},
			}
			if u := status.GetUsage(); u != nil && status.GetPid() != 0 {
				pairs = append(pairs, [2]string{"usage", brief(u.GetCpu().AsDuration()) + " CPU, " + size(u.GetResident()) + " resident"})
			}
			if heir := vm.GetRun().GetHeir(); heir.GetHost() != "" {
				pairs = append(pairs, [2]string{"heir", heir.GetHost() + " by " + heir.GetMigration()})
			}
			for _, d := range spec.GetDisks() {
				pairs = append(pairs, [2]string{d.GetName(), d.GetFile().GetPath() + " on " + d.GetFile().GetDatastore() + ", " + d.GetFormat() + ", " + size(d.GetSize())})
			}
			for _, n := range spec.GetNics() {
				pairs = append(pairs, [2]string{n.GetName(), n.GetMac() + " on " + n.GetNetwork() + addresses(n, status.GetGuest())})
			}
			return list(cmd.OutOrStdout(), pairs)
		},
	}
}

// vmState is what a VM does, or that it is blocked: it was lost with its host, and is not started again.
func vmState(vm *godwitv1.VM) string {
	if vm.GetPlace().GetBlocked() != "" {
		return "blocked"
	}
	return vm.GetStatus().GetState()
}

// restarts tells of the last time that a VM was started again on another host.
func restarts(p *godwitv1.VMPlace) string {
	if p.GetRestarts() == 0 {
		return ""
	}
	last := p.GetRestart()
	return fmt.Sprintf("%d, the last from %s at %s: %s", p.GetRestarts(), last.GetFrom(), last.GetAt().AsTime().Local().Format(time.DateTime), last.GetWhy())
}

func since(s *godwitv1.VMStatus) string {
	if s.GetSince() == nil {
		return ""
	}
	return " since " + s.GetSince().AsTime().Local().Format(time.DateTime)
}

func pid(n int32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func heartbeat(h *godwitv1.Heartbeat) string {
	if h.GetCount() == 0 {
		return ""
	}
	return fmt.Sprintf("%d, guest up %s, boot %s", h.GetCount(), brief(h.GetUptime().AsDuration()), h.GetBootId())
}

// graceDefault is how long a guest may take to shut down before vm stop gives up (not the guest: it runs on).
const graceDefault = 30 * time.Second

func newVMStop() *cobra.Command {
	var force bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "stop VM", Short: "Shut a VM down; --force cuts its power", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.StopVM(cmd.Context(), connect.NewRequest(&godwitv1.StopVMRequest{
				Vm: args[0], Force: force, Grace: durationpb.New(grace),
			}))
			if err != nil {
				return err
			}
			return printVM(cmd, resp.Msg.GetVm())
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "cut the power instead of asking the guest")
	cmd.Flags().DurationVar(&grace, "grace", graceDefault, "how long the guest may take")
	return cmd
}

func newVMDestroy() *cobra.Command {
	var disks bool
	cmd := &cobra.Command{
		Use: "destroy VM", Short: "Remove a stopped VM; its images stay unless --delete-disks", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			_, err = c.vms.DestroyVM(cmd.Context(), connect.NewRequest(&godwitv1.DestroyVMRequest{Vm: args[0], DeleteDisks: disks}))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: destroyed\n", args[0])
			return err
		},
	}
	cmd.Flags().BoolVar(&disks, "delete-disks", false, "delete the VM's images too")
	return cmd
}

// at splits "PATH@DATASTORE"; without "@" the first datastore of the host is meant.
func at(text string) *godwitv1.File {
	path, datastore, _ := strings.Cut(text, "@")
	return &godwitv1.File{Path: path, Datastore: datastore}
}
