package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// The annotations of flags: which key of the configuration a flag is, and which variable gave it its value.
const (
	settingKey  = "godwit-setting"
	variableKey = "godwit-variable"
)

// settingFlags gives the command a flag for every setting of a host. Commands that only look at settings take them all too, so
// that they see what "godwit run" would, but their help shows only where the host is.
func settingFlags(cmd *cobra.Command, shown bool) {
	flags := cmd.Flags()
	for _, s := range config.Settings() {
		flags.String(s.FlagName(), s.Default, s.Usage)
		f := flags.Lookup(s.FlagName())
		f.Annotations = map[string][]string{settingKey: {s.Key}}
		f.Hidden = !shown && s.Key != "data" && s.Key != "run"
	}
}

// settingInput gathers what flags and environment say of the settings, and where the file is.
func settingInput(cmd *cobra.Command) (config.Input, error) {
	path, err := cmd.Flags().GetString("config")
	in := config.Input{File: path, Must: cmd.Flags().Changed("config"), Fit: authorityFits}
	if err != nil {
		return in, err
	}
	if os.Getenv("GODWIT_DEBUG") != "" {
		in.Given = append(in.Given, config.Value{Key: "log-level", Text: "debug", From: config.Environment, Where: "GODWIT_DEBUG"})
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		key := f.Annotations[settingKey]
		if len(key) == 0 || !f.Changed {
			return
		}
		v := config.Value{Key: key[0], Text: f.Value.String(), From: config.Flag, Where: "--" + f.Name}
		if from := f.Annotations[variableKey]; len(from) > 0 {
			v.From, v.Where = config.Environment, from[0]
		}
		in.Given = append(in.Given, v)
	})
	return in, nil
}

// authoritySettings are the times of authority as the configuration has them.
func authoritySettings(c *config.Config) authority.Settings {
	a := c.Authority
	return authority.Settings{
		RenewEvery: a.RenewEvery, RenewTimeout: a.RenewTimeout, Stop: a.StopAfter, Freeze: a.FreezeAfter, Reset: a.ResetAfter,
		Watchdog: a.Watchdog, Lease: a.Lease, Silence: a.Silence, Planned: a.Planned, MassSilent: a.MassSilent,
	}
}

// authorityFits lists what makes the times of authority unsafe, with the arithmetic.
func authorityFits(c *config.Config) []string {
	var bad []string
	for _, text := range authoritySettings(c).Problems() {
		bad = append(bad, "authority: "+text)
	}
	return bad
}

// settings returns the configuration of a command that has settingFlags, without what init and join were told.
func settings(cmd *cobra.Command) (*config.Config, error) {
	in, err := settingInput(cmd)
	if err != nil {
		return nil, err
	}
	return config.Resolve(in)
}

// settingsOf returns configuration and state of the host whose data folder the configuration names.
func settingsOf(cmd *cobra.Command) (*config.Config, *hostConfig, error) {
	set, err := settings(cmd)
	if err != nil {
		return nil, nil, err
	}
	c, err := loadConfig(set.Data)
	if err != nil {
		return nil, nil, err
	}
	set, err = set.Under(c.told())
	return set, c, err
}

// told lists what init or join were told that is a setting too.
func (c *hostConfig) told() []config.Value {
	return []config.Value{
		{Key: "qemu", Text: c.Binary, From: config.Init, Where: c.path()},
		{Key: "user", Text: c.User, From: config.Init, Where: c.path()},
		{Key: "probe-cache", Text: c.Cache, From: config.Init, Where: c.path()},
	}
}

// settingArgs returns the flags that give a role what this process was given by flags. The file and the environment are read by
// the role itself.
func settingArgs(cmd *cobra.Command) []string {
	var args []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		own := f.Name == "config" || len(f.Annotations[settingKey]) > 0
		if own && f.Changed && len(f.Annotations[variableKey]) == 0 {
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

// flagsFromFile gives flags of commands that set up or look into a host the values of the configuration file, where neither
// command line nor environment has given them. "run" and the roles read the file themselves.
func flagsFromFile(cmd *cobra.Command) error {
	in, err := settingInput(cmd)
	if err != nil || cmd.Flags().Lookup("log-level") != nil {
		return err
	}
	var wanted []string
	for _, name := range []string{"data", "qemu", "user", "probe-cache"} {
		if f := cmd.Flags().Lookup(name); f != nil && !f.Changed {
			wanted = append(wanted, name)
		}
	}
	socket := cmd.Flags().Lookup("socket")
	if len(wanted) == 0 && (socket == nil || socket.Changed) {
		return nil
	}
	set, err := config.Resolve(in)
	if err != nil {
		// A command that only talks to the agent must work while somebody edits the file.
		if len(wanted) > 0 || in.Must {
			return err
		}
		return nil
	}
	for _, name := range wanted {
		if v := set.Value(name); v.From != config.Default {
			if err := cmd.Flags().Set(name, v.Text); err != nil {
				return fault.New(fault.Invalid, "%s: %s: %w", v.Where, v.Key, err)
			}
		}
	}
	if socket != nil && !socket.Changed {
		return socket.Value.Set(set.Socket())
	}
	return nil
}

// variable returns the environment variable of a flag.
func variable(flag string) string {
	return "GODWIT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
