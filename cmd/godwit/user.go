package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newUser() *cobra.Command {
	cmd := &cobra.Command{Use: "user", Short: "Keep users, their roles and their tokens"}
	token := &cobra.Command{Use: "token", Short: "Keep the tokens with which users call from anywhere"}
	token.AddCommand(newUserTokenCreate(), newUserTokenList(), newUserTokenRevoke())
	cmd.AddCommand(newUserCreate(), newUserList(), newUserSetRole(), newUserDelete(), token)
	return cmd
}

func newUserCreate() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use: "create NAME --role ROLE", Short: "Make a user", Args: cobra.ExactArgs(1),
		Long: `Create makes a user, who may do what the role says: a viewer reads; an operator also works with VMs and
images, from create and console to destroy; an admin does everything, with hosts, users, tokens, networks and
datastores too. The user calls from anywhere with a token ("godwit user token create"). Somebody of that name who
uses the agent's socket on a host has that role there too, in place of an administrator's.`,
		Example: "  godwit user create alice --role operator",
		RunE: func(cmd *cobra.Command, args []string) error {
			if role == "" {
				return usageError{fault.New(fault.Invalid, "a user needs a role: give --role admin, operator or viewer")}
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.CreateUser(cmd.Context(), connect.NewRequest(&godwitv1.CreateUserRequest{User: args[0], Role: role}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "user %s made, role %s\n", resp.Msg.GetUser().GetName(), resp.Msg.GetUser().GetRole())
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "admin, operator or viewer")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]cobra.Completion{"admin", "operator", "viewer"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

func newUserList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the users", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.ListUsers(cmd.Context(), connect.NewRequest(&godwitv1.ListUsersRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, u := range resp.Msg.GetUsers() {
				rows = append(rows, []string{u.GetName(), u.GetRole(), moment(u.GetCreated()), u.GetBy()})
			}
			return table(cmd.OutOrStdout(), []string{"NAME", "ROLE", "CREATED", "BY"}, rows)
		},
	}
}

func newUserSetRole() *cobra.Command {
	return &cobra.Command{
		Use: "set-role USER ROLE", Short: "Give a user another role", Args: cobra.ExactArgs(2),
		Long: `Set-role counts for the user's next call, on every host; a console or another call that lasts ends within 5 s
when the new role does not allow it. The last admin stays one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.SetUserRole(cmd.Context(), connect.NewRequest(&godwitv1.SetUserRoleRequest{User: args[0], Role: args[1]}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "user %s has role %s\n", resp.Msg.GetUser().GetName(), resp.Msg.GetUser().GetRole())
			return err
		},
	}
}

func newUserDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete USER", Short: "Remove a user and all its tokens", Args: cobra.ExactArgs(1),
		Long: `Delete removes the user and all its tokens. The last admin stays. Somebody of that name who may use a host's
socket is an administrator there again: take the name out of the socket's group too.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.DeleteUser(cmd.Context(), connect.NewRequest(&godwitv1.DeleteUserRequest{User: args[0]}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "user %s deleted\n", args[0])
			return err
		},
	}
}

func newUserTokenCreate() *cobra.Command {
	var life string
	cmd := &cobra.Command{
		Use: "create USER", Short: "Print a token with which the user calls, this once", Args: cobra.ExactArgs(1),
		Long: `Create prints a new token of the user. It is a password: the cluster keeps a hash of it and cannot show it again.
How to log in with it is told on standard error.`,
		Example: "  godwit user token create alice --life 90d > token",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := parseLife(life)
			if err != nil {
				return err
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.CreateUserToken(cmd.Context(), connect.NewRequest(&godwitv1.CreateUserTokenRequest{User: args[0], Lifetime: durationpb.New(d)}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "token %s of %s, good until %s; log in with it by:\n  godwit login %s --ca-hash %s\n",
				resp.Msg.GetToken().GetId(), args[0], moment(resp.Msg.GetToken().GetExpires()), resp.Msg.GetAddress(), resp.Msg.GetCaHash())
			_, err = fmt.Fprintln(cmd.OutOrStdout(), resp.Msg.GetSecret())
			return err
		},
	}
	cmd.Flags().StringVar(&life, "life", "30d", "how long the token is good, like 12h or 90d; at most 366d")
	return cmd
}

func newUserTokenList() *cobra.Command {
	return &cobra.Command{
		Use: "ls [USER]", Short: "List the tokens of a user, or of all", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			req := &godwitv1.ListUserTokensRequest{}
			if len(args) == 1 {
				req.User = args[0]
			}
			resp, err := c.users.ListUserTokens(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, t := range resp.Msg.GetTokens() {
				state := "good"
				if time.Now().After(t.GetExpires().AsTime()) {
					state = "expired"
				}
				rows = append(rows, []string{t.GetId(), t.GetUser(), state, moment(t.GetExpires()), moment(t.GetCreated()), t.GetBy()})
			}
			return table(cmd.OutOrStdout(), []string{"ID", "USER", "STATE", "EXPIRES", "CREATED", "BY"}, rows)
		},
	}
}

func newUserTokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "End a token at once, on all hosts", Args: cobra.ExactArgs(1),
		Long: `Revoke counts for every call that begins afterwards, on any host. A console or another call that lasts ends within
5 s. "godwit user token ls" shows the ids.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.RevokeUserToken(cmd.Context(), connect.NewRequest(&godwitv1.RevokeUserTokenRequest{Token: args[0]}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "token %s revoked\n", args[0])
			return err
		},
	}
}

// parseLife reads how long a token is to be good: a duration, or a number of days like 30d.
func parseLife(text string) (time.Duration, error) {
	bad := usageError{fault.New(fault.Invalid, "--life %q: write it like 12h or 30d", text)}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 15)
		if err != nil || n == 0 {
			return 0, bad
		}
		return time.Duration(n) * 24 * time.Hour, nil //nolint:gosec // 15 bits of days fit
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, bad
	}
	return d, nil
}
