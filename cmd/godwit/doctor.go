package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/doctor"
	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor [HOST]", Short: "Say what a host can and cannot do, and how to mend it",
		Long: `Doctor checks a host: QEMU and its abilities, KVM (a guest must prove that it runs 64-bit code), and that
QEMU's live migration keeps memory intact (a checked guest is migrated for real); then the machine: memory,
clock, folders, limits, packet filter, datastores (a file is written with O_DIRECT, locked and removed), and
the ports of the other hosts. Probes that take long are run once per QEMU build and cached.

Where no agent answers, and no host is named, it examines this machine without one: before godwit init, or
when the agent does not start.

Each line is good; warn, when something is missing that can be done without; or bad. Exit code 5 when
something that Godwit needs is bad.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := diagnose(cmd.Context(), cmd, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return printChecks(cmd, answer)
		},
	}
	settingFlags(cmd, false)
	return cmd
}

// diagnose asks the agent for what is to be said of a host, "" for its own. For that it examines this machine itself when no agent answers.
// The command has settingFlags.
func diagnose(ctx context.Context, cmd *cobra.Command, host string) (*godwitv1.DoctorResponse, error) {
	set, wrong := settings(cmd)
	if socket := cmd.Flags().Lookup("socket"); wrong == nil && !socket.Changed {
		if err := socket.Value.Set(set.Socket()); err != nil {
			return nil, err
		}
	}
	c, err := newClient(cmd)
	if err != nil {
		return nil, err
	}
	resp, err := c.hosts.Doctor(ctx, connect.NewRequest(&godwitv1.DoctorRequest{Host: host}))
	if err == nil {
		return resp.Msg, nil
	}
	to, wrongDoor := doorOf(cmd)
	if !fault.Is(err, fault.Unavailable) || host != "" || wrongDoor != nil || to.server != "" { // this machine is not the one that was asked
		return nil, err
	}
	if wrong != nil {
		return nil, wrong // what is examined would not be what the host is told
	}
	answer := &godwitv1.DoctorResponse{}
	for _, found := range withoutAgent(ctx, set, err) {
		answer.Checks = append(answer.Checks, &godwitv1.Check{Name: found.Name, State: found.State, Detail: found.Detail, Fix: found.Fix})
	}
	return answer, nil
}

// printChecks prints what was found, and returns what is bad as a refusal.
func printChecks(cmd *cobra.Command, answer *godwitv1.DoctorResponse) error {
	var bad []string
	for _, check := range answer.GetChecks() {
		if check.GetState() == doctor.Bad {
			bad = append(bad, check.GetName()+": "+check.GetDetail())
		}
	}
	done, err := printed(cmd, answer)
	if err != nil {
		return err
	}
	for _, check := range answer.GetChecks() {
		if done {
			break
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%-5s %-12s %s\n", check.GetState(), check.GetName(), check.GetDetail()); err != nil {
			return err
		}
		if check.GetFix() != "" && check.GetState() != doctor.Good {
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "      %-12s -> %s\n", "", check.GetFix()); err != nil {
				return err
			}
		}
	}
	return fault.Refuse(fault.Incompatible, bad)
}

// withoutAgent examines this machine when its agent does not answer, for the reason why.
func withoutAgent(ctx context.Context, set *config.Config, why error) []doctor.Check {
	agent := doctor.Check{Name: "agent", State: doctor.Warn, Detail: "this machine is no host yet", Fix: "godwit init makes it the first of a cluster, godwit join one of an existing"}
	c, err := loadConfig(set.Data)
	if err == nil {
		var told *config.Config
		if told, err = set.Under(c.told()); err == nil {
			set = told
		}
	}
	switch {
	case err == nil:
		agent.State, agent.Detail, agent.Fix = doctor.Bad, why.Error(), "start it: systemctl start godwit, or godwit run; its log says why it ended"
	case !fault.Is(err, fault.NotFound):
		agent.State, agent.Detail, agent.Fix = doctor.Bad, err.Error(), "restore the data folder from a backup, or remove it and join anew"
	}
	examined := doctor.Config{QEMU: qemu.ProbeConfig{Binary: set.Binary, CacheDir: set.Cache}, Data: set.Data, Run: set.Run, Watchdog: set.Watchdog, WatchdogTimeout: set.Authority.Watchdog}
	user := ""
	if os.Geteuid() == 0 && set.User != "" {
		user = set.User
		if found, err := qemu.LookupUser(user); err == nil {
			examined.QEMU.User = found
		}
	}
	if c != nil {
		for _, d := range c.Datastores {
			examined.Datastores = append(examined.Datastores, doctor.Folder{Name: d.Name, Path: d.Path, Shared: !d.Local})
		}
	}
	checks := append([]doctor.Check{agent}, doctor.Probe(ctx, examined, user, migrate.Needed())...)
	return append(checks, doctor.Machine(ctx, examined)...)
}
