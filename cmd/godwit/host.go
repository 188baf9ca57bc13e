package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newHost() *cobra.Command {
	cmd := &cobra.Command{Use: "host", Short: "List, inspect and remove the cluster's hosts"}
	cmd.AddCommand(newHostList(), newHostInfo(), newHostConfirmDead(), newHostRemove(), newHostRotate())
	return cmd
}

func newHostList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the hosts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.hosts.ListHosts(cmd.Context(), connect.NewRequest(&godwitv1.ListHostsRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, h := range resp.Msg.GetHosts() {
				rows = append(rows, []string{
					h.GetId(), h.GetSpec().GetAddress(), hostState(h), fmt.Sprint(h.GetSpec().GetCpus()), size(h.GetSpec().GetMemory()),
					size(h.GetStatus().GetMemoryFree()), fmt.Sprint(h.GetStatus().GetVms()),
					partInStore(h), emulator(h.GetSpec()),
				})
			}
			return table(cmd.OutOrStdout(), []string{"NAME", "ADDRESS", "STATE", "CPUS", "MEMORY", "FREE", "VMS", "STORE", "QEMU"}, rows)
		},
	}
}

// partInStore says what the host has to do with the cluster's store.
func partInStore(h *godwitv1.Host) string { return cmp.Or(h.GetStore(), "-") }

// emulator says what runs the host's VMs.
func emulator(s *godwitv1.HostSpec) string {
	if s.GetWitness() {
		return "witness: runs no VMs"
	}
	return s.GetQemu().GetVersion() + " " + s.GetQemu().GetAccelerator()
}

func newHostRotate() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-certificate [HOST]", Short: "Give a host a new key and certificate while it runs", Args: cobra.MaximumNArgs(1),
		Long: `Rotate-certificate gives this host, or the one that is named, a new key and a certificate signed by the
cluster's CA. New connections show it at once, those that are open go on; nothing is started again. Hosts do it
by themselves when a third of a certificate's life is left. The old one stays valid until it ends.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.cluster.RotateCertificate(cmd.Context(), connect.NewRequest(&godwitv1.RotateCertificateRequest{Host: strings.Join(args, "")}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "host %s has a new certificate, valid until %s\n", resp.Msg.GetHost(), resp.Msg.GetExpires().AsTime().Format(time.DateOnly))
			return err
		},
	}
}

// hostState is what the leader says of the host: up, silent, blocked or fenced. One that is up and does not answer the agent that was asked
// is shown as that.
func hostState(h *godwitv1.Host) string {
	if state := h.GetStanding().GetState(); state != "" && state != "up" {
		return state
	}
	if h.GetStatus().GetConnected() {
		return "up"
	}
	return "not answering"
}

func newHostInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info [HOST]", Short: "Show one host: abilities, datastores, processes", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			req := &godwitv1.GetHostRequest{}
			if len(args) == 1 {
				req.Host = args[0]
			}
			resp, err := c.hosts.GetHost(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			return printHost(cmd, resp.Msg)
		},
	}
}

func printHost(cmd *cobra.Command, msg *godwitv1.GetHostResponse) error {
	h := msg.GetHost()
	spec, emulator := h.GetSpec(), h.GetSpec().GetQemu()
	pairs := [][2]string{
		{"name", h.GetId()},
		{"state", hostState(h) + when(h.GetStanding().GetSince()) + because(h.GetStanding().GetWhy())},
		{"address", spec.GetAddress()},
		{"version", spec.GetVersion()},
		{"epoch", fmt.Sprint(spec.GetEpoch())},
		{"cpus", fmt.Sprint(spec.GetCpus())},
		{"memory", size(spec.GetMemory()) + ", " + size(h.GetStatus().GetMemoryFree()) + " free"},
		{"vms", fmt.Sprint(h.GetStatus().GetVms())},
		{"qemu", emulator.GetVersion() + " at " + emulator.GetPath()},
		{"accelerator", emulator.GetAccelerator() + parenthesis(emulator.GetWhy())},
		{"cpu models", strings.Join(emulator.GetCpuModels(), " ")},
		{"uefi", spec.GetUefi().GetCode()},
		{"migration", verdict(emulator.GetMigration()) + parenthesis(emulator.GetMigration().GetDetail())},
	}
	for _, d := range spec.GetDatastores() {
		local := ""
		if !d.GetShared() {
			local = ", local to this host"
		}
		pairs = append(pairs, [2]string{"datastore " + d.GetName(), d.GetPath() + " (" + d.GetId() + local + ")"})
	}
	for _, p := range msg.GetProcesses() {
		pairs = append(pairs, [2]string{"process " + p.GetRole(), fmt.Sprintf("pid %d, %s", p.GetPid(), size(p.GetResident()))})
	}
	return list(cmd.OutOrStdout(), pairs)
}

// when returns " since TIME", or nothing for no time.
func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return " since " + t.AsTime().Local().Format(time.DateTime)
}

// because returns ": WHY", or nothing for no reason.
func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func parenthesis(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func verdict(v *godwitv1.Verdict) string {
	switch v.GetState() {
	case godwitv1.Verdict_STATE_GOOD:
		return "keeps memory intact"
	case godwitv1.Verdict_STATE_BAD:
		return "LOSES MEMORY"
	case godwitv1.Verdict_STATE_UNSPECIFIED:
	}
	return "not probed"
}
