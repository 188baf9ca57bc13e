package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/control/parent"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newRun() *cobra.Command {
	var data, run string
	cmd := &cobra.Command{
		Use: "run", Short: "Run this host: agent, switch and, where it is a member, store", Args: cobra.NoArgs,
		Long: `Run is the main process of a host. It starts the agent, the switch and, on a host that carries one, the
store, and starts again what ends. SIGTERM and Ctrl-C end them in order; VMs run on, and the next run
finds them.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			thrifty(parentMemory)
			c, err := loadConfig(data)
			if err != nil {
				return err
			}
			binary, err := os.Executable()
			if err != nil {
				return fault.New(fault.Internal, "own binary: %w", err)
			}
			args := func(role string) parent.Child {
				return parent.Child{Role: role, Args: []string{"role", role, "--data", data, "--run", run}}
			}
			children := []parent.Child{args("switch"), args("agent")}
			if c.Member {
				children = append([]parent.Child{args("store")}, children...)
			}
			return parent.Run(cmd.Context(), binary, children, newLog("parent"))
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
