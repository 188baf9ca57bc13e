package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newDoctor() *cobra.Command {
	return &cobra.Command{
		Use: "doctor [HOST]", Short: "Say what a host can and cannot do, and how to mend it",
		Long: `Doctor checks a host: QEMU and its abilities, KVM (a guest must prove that it runs 64-bit code), and that
QEMU's live migration keeps memory intact (a checked guest is migrated for real). Probes that take long are
run once per QEMU build and cached. Exit code 5 when something that Godwit needs is bad.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			req := &godwitv1.DoctorRequest{}
			if len(args) == 1 {
				req.Host = args[0]
			}
			resp, err := c.hosts.Doctor(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			var bad []string
			for _, check := range resp.Msg.GetChecks() {
				if check.GetState() == "bad" {
					bad = append(bad, check.GetName()+": "+check.GetDetail())
				}
			}
			done, err := printed(cmd, resp.Msg)
			if err != nil {
				return err
			}
			if !done {
				for _, check := range resp.Msg.GetChecks() {
					if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%-5s %-12s %s\n", check.GetState(), check.GetName(), check.GetDetail()); err != nil {
						return err
					}
					if check.GetFix() != "" && check.GetState() != "good" {
						if _, err := fmt.Fprintf(cmd.OutOrStdout(), "      %-12s -> %s\n", "", check.GetFix()); err != nil {
							return err
						}
					}
				}
			}
			return fault.Refuse(fault.Incompatible, bad)
		},
	}
}
