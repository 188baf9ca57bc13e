package main

import (
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newRun() *cobra.Command {
	var data, run string
	cmd := &cobra.Command{
		Use: "run", Short: "Run this host: agent, switch and, where it is a member, store", Args: cobra.NoArgs,
		Long: `Run is the main process of a host. It starts the agent, the switch and, on a host that carries one, the
store, starts again what ends, and kills and starts again what is silent for two seconds. SIGTERM and Ctrl-C
end them in order; VMs run on, and the next run finds them. "godwit install" makes it a service of systemd.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			thrifty(wardenMemory)
			c, err := loadConfig(data)
			if err != nil {
				return err
			}
			binary, err := os.Executable()
			if err != nil {
				return fault.New(fault.Internal, "own binary: %w", err)
			}
			log := newLog("warden")
			warden.Protect(cmd.Context(), log)
			vms := warden.Settle(cmd.Context(), log)
			role := func(name string) warden.Role {
				return warden.Role{Name: name, Args: []string{"role", name, "--data", data, "--run", run, "--cgroup", vms}}
			}
			roles := []warden.Role{role("switch"), role("agent")}
			if c.Member {
				roles = slices.Insert(roles, 0, role("store"))
			}
			return warden.Run(cmd.Context(), warden.Config{Binary: binary, Roles: roles, Front: "agent", RunDir: run, Log: log})
		},
	}
	roleFlags(cmd, &data, &run)
	return cmd
}

func roleFlags(cmd *cobra.Command, data, run *string) {
	cmd.Flags().StringVar(data, "data", defaultData, "data folder of the host")
	cmd.Flags().StringVar(run, "run", defaultRun, "folder for sockets and journals, on tmpfs")
}

// newLog logs to standard error, a line an event, with the role that says it.
func newLog(role string) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("GODWIT_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With(slog.String("role", role))
}
