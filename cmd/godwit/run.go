package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/datadir"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/watchdog"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newRun() *cobra.Command {
	var networks []string
	cmd := &cobra.Command{
		Use: "run", Short: "Run this host: agent, switch and, where it is a member, store", Args: cobra.NoArgs,
		Long: `Run is the main process of a host. It starts the agent, the switch and, on a host that carries one, the
store, starts again what ends, and kills and starts again what is silent for two seconds. SIGTERM and Ctrl-C
end them in order; VMs run on, and the next run finds them. Where the store does not answer and a watchdog is
armed, run stays until this host's authority is over, and VMs are frozen or killed then. "godwit install" makes
it a service of systemd. SIGHUP makes all of them read the log levels anew from the configuration file; other
settings count from the next start on.

Every setting can stand in the configuration file under the name of its flag, --limits-calls as calls in the
table [limits], --log-levels-agent as agent in [log-levels]: "godwit config show" prints them with their
sources. What carries a bridge network on this host stands there as [networks.NAME] with bridge or uplink; --network
counts before it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			thrifty(wardenMemory)
			if _, err := parseCarriers(networks); err != nil {
				return err
			}
			set, c, err := settingsOf(cmd)
			if err != nil {
				return err
			}
			log := openLog(cmd.Context(), cmd, "warden", set, hangUpRoles)
			if _, err := peer.Load(c.pki()); err != nil { // no role could do anything; one line is better than their restarts
				return err
			}
			held, err := holdFolders(cmd.Context(), set, log)
			if err != nil {
				return err
			}
			defer func() { _ = held.Close() }() // the end of the process does the same
			binary, err := os.Executable()
			if err != nil {
				return fault.New(fault.Internal, "own binary: %w", err)
			}
			warden.Protect(cmd.Context(), log)
			vms := warden.Settle(cmd.Context(), set.Run, log)
			role := func(name string) warden.Role {
				return warden.Role{Name: name, Args: append([]string{"role", name, "--cgroup", vms}, settingArgs(cmd)...)}
			}
			agent := role("agent")
			for _, n := range networks {
				agent.Args = append(agent.Args, "--network", n)
			}
			roles := []warden.Role{agent}
			if !c.Witness {
				roles = slices.Insert(roles, 0, role("switch"))
			}
			if !c.Foreign {
				member := role("store")
				member.Off = !c.Member // the agent says when that changes
				roles = slices.Insert(roles, 0, member)
			}
			return warden.Run(cmd.Context(), warden.Config{
				Binary: binary, Roles: roles, Front: "agent", RunDir: set.Run, Cgroup: path.Join(vms, string(c.Host)), Authority: authoritySettings(set),
				Watchdog: watchdogOf(cmd.Context(), set, log), Log: log,
			})
		},
	}
	settingFlags(cmd, true)
	networkFlag(cmd, &networks)
	return cmd
}

// watchdogOf returns the watchdog that the settings want, nil for none. The default device is used where there is one.
func watchdogOf(ctx context.Context, set *config.Config, log *slog.Logger) warden.Watchdog {
	name, timeout := set.Watchdog, set.Authority.Watchdog
	if name == "" || timeout == 0 {
		return nil
	}
	if set.Value("watchdog-device").From == config.Default {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			log.LogAttrs(ctx, slog.LevelWarn, "this machine has no watchdog: when it falls silent, its VMs are started elsewhere only after somebody has confirmed that it is dead",
				slog.String("device", name))
			return nil
		}
	}
	return watchdog.New(name, timeout)
}

// holdFolders takes the data folder for this process, brings it to this version, and looks at the run directory.
func holdFolders(ctx context.Context, set *config.Config, log *slog.Logger) (*datadir.Folder, error) {
	held, err := datadir.Open(set.Data)
	if err != nil {
		return nil, err
	}
	if held.From != datadir.Version {
		log.LogAttrs(ctx, slog.LevelInfo, "data folder brought to a newer version", slog.String("dir", held.Path),
			slog.Int("from", held.From), slog.Int("to", datadir.Version))
	}
	if in, err := datadir.OnTmpfs(set.Run); err != nil {
		return nil, err
	} else if !in {
		log.LogAttrs(ctx, slog.LevelWarn, "run directory is not on tmpfs: after a reboot it would speak of VMs that are gone",
			slog.String("dir", set.Run))
	}
	return held, nil
}
