package main

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newMigration() *cobra.Command {
	cmd := &cobra.Command{Use: "migration", Short: "List, follow and cancel migrations"}
	cmd.AddCommand(newMigrationList(), newMigrationShow(), newMigrationCancel())
	return cmd
}

func newMigrationList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List running and past migrations, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.migrations.ListMigrations(cmd.Context(), connect.NewRequest(&godwitv1.ListMigrationsRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, m := range resp.Msg.GetMigrations() {
				rows = append(rows, []string{
					m.GetId(), m.GetSpec().GetVmName(), m.GetSpec().GetSource(), m.GetSpec().GetTarget(), m.GetStatus().GetPhase(),
					m.GetSpec().GetRequested().AsTime().Local().Format(time.DateTime), m.GetStatus().GetReason(),
				})
			}
			return table(cmd.OutOrStdout(), []string{"ID", "VM", "SOURCE", "TARGET", "PHASE", "REQUESTED", "REASON"}, rows)
		},
	}
}

func newMigrationShow() *cobra.Command {
	return &cobra.Command{
		Use: "show MIGRATION", Short: "Show one migration with its figures", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.migrations.GetMigration(cmd.Context(), connect.NewRequest(&godwitv1.GetMigrationRequest{Migration: args[0]}))
			if err != nil {
				return err
			}
			return printMigration(cmd, resp.Msg.GetMigration())
		},
	}
}

func newMigrationCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel MIGRATION", Short: "End a migration; the VM runs on at its source", Args: cobra.ExactArgs(1),
		Long: `Cancel ends a migration before its switchover is decided; the VM runs on at its source. Once the
VM was released to the target there is nothing left to cancel, and the command says so.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.migrations.CancelMigration(cmd.Context(), connect.NewRequest(&godwitv1.CancelMigrationRequest{Migration: args[0]}))
			if err != nil {
				return err
			}
			return printMigration(cmd, resp.Msg.GetMigration())
		},
	}
}

func printMigration(cmd *cobra.Command, m *godwitv1.Migration) error {
	if done, err := printed(cmd, m); done || err != nil {
		return err
	}
	s, p, r := m.GetStatus(), m.GetStatus().GetProgress(), m.GetStatus().GetResult()
	pairs := [][2]string{
		{"migration", m.GetId()},
		{"vm", m.GetSpec().GetVmName()},
		{"way", m.GetSpec().GetSource() + " -> " + m.GetSpec().GetTarget()},
		{"phase", s.GetPhase()},
		{"reason", s.GetReason()},
		{"reasons", strings.Join(s.GetReasons(), "; ")},
	}
	if r.GetTotal().AsDuration() > 0 {
		pairs = append(pairs, [][2]string{
			{"total", brief(r.GetTotal().AsDuration())},
			{"downtime", brief(r.GetDowntime().AsDuration()) + " as QEMU counts it"},
			{"pause", brief(r.GetStopToResume().AsDuration()) + " from stop to resume"},
			{"sent", size(r.GetSent())},
			{"rounds", fmt.Sprint(r.GetRounds())},
		}...)
	} else if p.GetRound() > 0 {
		pairs = append(pairs, [][2]string{
			{"round", fmt.Sprint(p.GetRound())},
			{"remaining", size(p.GetRemaining()) + " of " + size(p.GetTotal())},
			{"sent", size(p.GetSent())},
			{"dirty rate", rate(p.GetDirtyRate())},
			{"send rate", rate(p.GetSendRate())},
			{"eta", brief(p.GetEta().AsDuration())},
		}...)
	}
	return list(cmd.OutOrStdout(), pairs)
}
