// Command godwit is the whole of Godwit in one binary: the four roles that run on a host and the command line that
// talks to them. Wiring lives here and nowhere else; a file holds a command.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/fault"
)

// version is set by the linker (Makefile).
var version = "0.1.0-dev"

// The exit codes. docs/cli.md lists them for scripts; they do not change.
const (
	exitOK          = 0
	exitInternal    = 1 // a bug, or an error of a kind nobody foresaw
	exitUsage       = 2 // the command line is wrong, or a value in it is malformed
	exitNotFound    = 3 // a named object does not exist
	exitConflict    = 4 // it exists already, or its state forbids the request now
	exitRefused     = 5 // admission refused: the two sides do not fit, or something runs out
	exitUnavailable = 6 // a host, the store or QEMU does not answer
	exitCanceled    = 130
)

func main() { os.Exit(run(os.Args[1:])) }

// run executes one command line and returns its exit code.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	report(cmd, err)
	return exitCode(err)
}

// report prints one line, or for a refusal one line a reason.
func report(cmd *cobra.Command, err error) {
	reasons := fault.Reasons(err)
	if len(reasons) < 2 {
		fmt.Fprintf(os.Stderr, "godwit: %v\n", err)
	} else {
		fmt.Fprintf(os.Stderr, "godwit: %s was refused:\n", strings.TrimPrefix(cmd.CommandPath(), "godwit "))
		for _, r := range reasons {
			fmt.Fprintf(os.Stderr, "  - %s\n", r)
		}
	}
}

func exitCode(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		return exitUsage
	case fault.NotFound:
		return exitNotFound
	case fault.Exists, fault.Conflict:
		return exitConflict
	case fault.Denied, fault.Incompatible, fault.NoResources:
		return exitRefused
	case fault.Unavailable:
		return exitUnavailable
	case fault.Canceled:
		return exitCanceled
	case fault.Unknown, fault.Internal:
	}
	return exitInternal
}

// usageError marks what cobra says of a malformed command line.
type usageError struct{ error }

// Unwrap keeps the cause.
func (u usageError) Unwrap() error { return u.error }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "godwit",
		Short: "Turn Linux machines with QEMU/KVM into one data centre",
		Long: `Godwit turns Linux machines with QEMU/KVM into one data centre: virtual machines move between hosts
while they run.

Commands have the form "godwit NOUN VERB". Every flag can also be given as an environment variable,
--socket as GODWIT_SOCKET. Results go to standard output, everything else to standard error.

Exit codes: 0 done; 1 internal error; 2 malformed command or value; 3 no such object; 4 the object
exists already or its state forbids the request; 5 refused, with all reasons; 6 a host, the store or
QEMU does not answer; 130 canceled.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := flagsFromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			return flagsFromFile(cmd)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())}
	})
	root.PersistentFlags().String("socket", defaultSocket, "unix socket of the agent to talk to")
	root.PersistentFlags().String("server", "", "HOST:PORT of an agent to talk to over TLS as a user of the cluster, instead of a socket (godwit login)")
	root.PersistentFlags().String("token-file", "", "file with the user's token; empty: GODWIT_TOKEN, or what godwit login has kept")
	root.PersistentFlags().String("ca-hash", "", "hash of the cluster's CA, which --server must have; empty: what godwit login has kept")
	root.PersistentFlags().String("config", config.DefaultFile, "configuration file of the host; the usual one may be missing")
	root.PersistentFlags().Bool("json", false, "print JSON instead of a table")
	root.PersistentFlags().String("request", "", "idempotency key of this call: repeated with it, it is done once; empty: a random one")
	root.CompletionOptions.DisableDefaultCmd = true // completion is a command of ours
	root.AddCommand(newHost(), newVM(), newMigration(), newTask(), newEvent(), newNetwork(), newDatastore(), newImage(), newDoctor(),
		newConfig(), newSupportBundle(), newInit(), newCluster(), newUser(), newLogin(), newLogout(), newWhoAmI(), newToken(), newJoin(), newWitness(), newRun(), newInstall(), newUninstall(), newRole(), newStore(),
		newVersion(), newCompletion(), newMan())
	tidyArgs(root)
	completeNames(root)
	return root
}

// tidyArgs makes every complaint about arguments a usage error that names the help.
func tidyArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{fmt.Errorf("%w: usage is %s", err, c.UseLine())}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: see %s --help", args[0], c.CommandPath())}
			}
			return c.Help()
		}
	}
	for _, sub := range cmd.Commands() {
		tidyArgs(sub)
	}
}

// flagsFromEnvironment sets each flag that the command line left alone from GODWIT_NAME.
func flagsFromEnvironment(flags *pflag.FlagSet) error {
	var bad error
	flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		value, ok := os.LookupEnv(name)
		if f.Changed || !ok || bad != nil {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			bad = usageError{fmt.Errorf("environment variable %s: %w", name, err)}
			return
		}
		bad = flags.SetAnnotation(f.Name, variableKey, []string{name})
	})
	return bad
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	}
}
