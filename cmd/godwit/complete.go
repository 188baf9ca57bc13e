package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// completionMax bounds how long a shell waits for names after TAB. An agent that is away, or slower, gives none.
const completionMax = time.Second

// shells are those that completion knows, with the file that each looks for by itself in its folder.
var shells = []struct {
	name, file string
	write      func(root *cobra.Command, file string) error
}{
	{"bash", "bash-completion/completions/godwit", func(root *cobra.Command, file string) error { return root.GenBashCompletionFileV2(file, true) }},
	{"zsh", "zsh/site-functions/_godwit", func(root *cobra.Command, file string) error { return root.GenZshCompletionFile(file) }},
	{"fish", "fish/vendor_completions.d/godwit.fish", func(root *cobra.Command, file string) error { return root.GenFishCompletionFile(file, true) }},
}

func newCompletion() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Print what makes a shell complete commands, flags and names",
		Long: `Completion prints a script for a shell. With it TAB completes commands, flags, and the names of VMs, hosts,
networks, datastores, users, migrations and tasks, which it asks the agent for; when none answers within a second
there are no names, and no error.`,
		Example: `  source <(godwit completion bash)
  godwit completion zsh > /usr/share/zsh/site-functions/_godwit
  godwit completion fish > ~/.config/fish/completions/godwit.fish`,
		Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs), ValidArgs: []cobra.Completion{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			}
			return root.GenFishCompletion(out, true)
		},
	}
}

// writeCompletions writes the scripts of all shells below dir, which is /usr/share on a host, where each shell finds its
// own, and returns the files it wrote.
func writeCompletions(dir string) ([]string, error) {
	var files []string
	for _, shell := range shells {
		file := filepath.Join(dir, shell.file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // for everybody to read
			return files, fault.New(fault.NoResources, "completion of %s: %w", shell.name, err)
		}
		if err := shell.write(newRoot(), file); err != nil {
			return files, fault.New(fault.NoResources, "completion of %s: %w", shell.name, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// namers ask the agent for the names that a word in capitals of a command's usage stands for.
var namers = map[string]func(context.Context, *client) ([]string, error){
	"VM": func(ctx context.Context, c *client) (names []string, err error) {
		resp, err := c.vms.ListVMs(ctx, connect.NewRequest(&godwitv1.ListVMsRequest{}))
		if err != nil {
			return nil, err
		}
		for _, vm := range resp.Msg.GetVms() {
			names = append(names, cobra.CompletionWithDesc(vm.GetSpec().GetName(), vm.GetStatus().GetState()+" on "+vm.GetRun().GetOwner()))
		}
		return names, nil
	},
	"HOST": func(ctx context.Context, c *client) (names []string, err error) {
		resp, err := c.hosts.ListHosts(ctx, connect.NewRequest(&godwitv1.ListHostsRequest{}))
		if err != nil {
			return nil, err
		}
		for _, h := range resp.Msg.GetHosts() {
			names = append(names, cobra.CompletionWithDesc(h.GetId(), h.GetSpec().GetAddress()))
		}
		return names, nil
	},
	"DATASTORE": func(ctx context.Context, c *client) (names []string, err error) {
		resp, err := c.hosts.ListHosts(ctx, connect.NewRequest(&godwitv1.ListHostsRequest{}))
		if err != nil {
			return nil, err
		}
		seen := map[string]bool{}
		for _, h := range resp.Msg.GetHosts() {
			for _, d := range h.GetSpec().GetDatastores() {
				if !seen[d.GetName()] {
					names = append(names, d.GetName())
				}
				seen[d.GetName()] = true
			}
		}
		return names, nil
	},
	"NETWORK": func(ctx context.Context, c *client) (names []string, err error) {
		resp, err := c.hosts.ListNetworks(ctx, connect.NewRequest(&godwitv1.ListNetworksRequest{}))
		if err != nil {
			return nil, err
		}
		for _, n := range resp.Msg.GetNetworks() {
			names = append(names, cobra.CompletionWithDesc(n.GetId(), n.GetSpec().GetSubnet()))
		}
		return names, nil
	},
	"TASK": func(ctx context.Context, c *client) (names []string, err error) {
		resp, err := c.tasks.ListTasks(ctx, connect.NewRequest(&godwitv1.ListTasksRequest{}))
		if err != nil {
			return nil, err
		}
		for _, t := range resp.Msg.GetTasks() {
			names = append(names, cobra.CompletionWithDesc(t.GetId(), t.GetSpec().GetKind()+" "+t.GetSpec().GetObjectName()))
		}
		return names, nil
	},
	"USER": userNames,
	"ROLE": func(context.Context, *client) ([]string, error) { return []string{"admin", "operator", "viewer"}, nil },
	"MIGRATION": func(ctx context.Context, c *client) (names []string, err error) {
		resp, err := c.migrations.ListMigrations(ctx, connect.NewRequest(&godwitv1.ListMigrationsRequest{}))
		if err != nil {
			return nil, err
		}
		for _, m := range resp.Msg.GetMigrations() {
			names = append(names, cobra.CompletionWithDesc(m.GetId(), m.GetSpec().GetVmName()+" "+m.GetStatus().GetPhase()))
		}
		return names, nil
	},
}

// userNames asks for the users' names.
func userNames(ctx context.Context, c *client) (names []string, err error) {
	resp, err := c.users.ListUsers(ctx, connect.NewRequest(&godwitv1.ListUsersRequest{}))
	if err != nil {
		return nil, err
	}
	for _, u := range resp.Msg.GetUsers() {
		names = append(names, cobra.CompletionWithDesc(u.GetName(), u.GetRole()))
	}
	return names, nil
}

// namedFlags are the flags whose value is a name.
var namedFlags = map[string]string{
	"to": "HOST", "host": "HOST", "gateway": "HOST", "nic": "NETWORK", "datastore": "DATASTORE",
}

// completeNames lets every command of the tree complete its arguments by the words of its usage: "migrate VM --to HOST" takes
// the names of VMs first. Commands that complete in a way of their own keep it.
func completeNames(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		completeNames(sub)
	}
	if cmd.Runnable() && cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !cmd.HasSubCommands() {
		words := arguments(cmd.Use)
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) >= len(words) {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return names(cmd, words[len(args)], typed)
		}
	}
	for flag, kind := range namedFlags {
		if cmd.Flags().Lookup(flag) == nil {
			continue
		}
		if cmd.Name() == "init" || cmd.Name() == "join" {
			continue // there the value of --datastore is a new one
		}
		// It fails only for a flag that has a completion already, and keeps that.
		_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return names(cmd, kind, typed)
		})
	}
}

// arguments returns the words for positional arguments of a usage line: "migrate VM --to HOST" has one, "info [HOST]" too.
func arguments(use string) []string {
	var words []string
	fields := strings.Fields(use)
	for i := 1; i < len(fields); i++ {
		word := strings.Trim(fields[i], "[].")
		if strings.HasPrefix(word, "-") {
			i++ // its value
			continue
		}
		if word != "" && word != "flags" {
			words = append(words, word)
		}
	}
	return words
}

// names returns what can stand for a word of a usage line. It fails silently: nobody reads errors while typing.
func names(cmd *cobra.Command, word, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ask, known := namers[word]
	if !known {
		if strings.Contains(word, "FILE") || strings.Contains(word, "DIR") || strings.Contains(word, "PATH") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if cmd.Root().PersistentPreRunE(cmd, nil) != nil { // the socket may be named elsewhere than on the line
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := newClient(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	base := cmd.Context()
	if base == nil {
		base = context.Background()
	}
	ctx, done := context.WithTimeout(base, completionMax)
	defer done()
	found, err := ask(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var fit []cobra.Completion
	for _, name := range found {
		if strings.HasPrefix(name, typed) {
			fit = append(fit, name)
		}
	}
	return fit, cobra.ShellCompDirectiveNoFileComp
}
