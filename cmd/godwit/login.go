package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newLogin() *cobra.Command {
	return &cobra.Command{
		Use: "login HOST:PORT", Short: "Keep a token for a cluster on this machine, to call it from here", Args: cobra.ExactArgs(1),
		Long: `Login asks the host who the token's user is, and keeps token and CA hash in ~/.config/godwit/credentials, which
only you may read. Every command then reaches the cluster with --server HOST:PORT, or with GODWIT_SERVER in
the environment. The token is read from --token-file, from GODWIT_TOKEN, or from standard input.

The hash says which cluster the host must belong to; it comes with the token ("godwit user token create"). The
host may be any of the cluster; the port may be left out.`,
		Example: `  godwit login 192.0.2.11 --ca-hash sha256:1f2e...
  export GODWIT_SERVER=192.0.2.11
  godwit vm ls`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := loginFrom(cmd, args[0])
			if err != nil {
				return err
			}
			if err := cmd.Flags().Set("server", l.Server); err != nil { // for the words of what goes wrong
				return err
			}
			c, err := clientOver(cmd, l.client(), "https://"+l.Server)
			if err != nil {
				return err
			}
			resp, err := c.users.WhoAmI(cmd.Context(), connect.NewRequest(&godwitv1.WhoAmIRequest{}))
			if err != nil {
				return err
			}
			path, _, err := changeCredentials(l.Server, &l)
			if err != nil {
				return fault.Wrap("keep credentials in", path, err)
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "logged in to cluster %s as %s, role %s: give commands --server %s, or set GODWIT_SERVER=%s\n",
				resp.Msg.GetCluster(), resp.Msg.GetName(), resp.Msg.GetRole(), l.Server, l.Server)
			return err
		},
	}
}

// loginFrom gathers what login keeps. A cluster whose hash is kept already needs it no second time.
func loginFrom(cmd *cobra.Command, server string) (login, error) {
	var l login
	var err error
	if l.Server, err = serverAddress(server); err != nil {
		return l, err
	}
	if l.CAHash, err = cmd.Flags().GetString("ca-hash"); err != nil {
		return l, err
	}
	if l.CAHash == "" {
		kept, err := readCredentials()
		if err != nil {
			return l, err
		}
		for _, k := range kept {
			if k.Server == l.Server {
				l.CAHash = k.CAHash
			}
		}
	}
	if l.CAHash == "" {
		return l, usageError{fault.New(fault.Invalid, "nothing says which cluster %s belongs to: give the hash that came with the token, with --ca-hash", l.Server)}
	}
	file, err := cmd.Flags().GetString("token-file")
	if err != nil {
		return l, err
	}
	switch {
	case file != "":
		l.Token, err = tokenFrom(file)
	case os.Getenv(tokenVariable) != "":
		l.Token = os.Getenv(tokenVariable)
	default:
		l.Token, err = askToken(cmd)
	}
	if err != nil {
		return l, err
	}
	l.Token = strings.TrimSpace(l.Token)
	return l, l.check()
}

// askToken reads the token from standard input, on a terminal without showing it.
func askToken(cmd *cobra.Command) (string, error) {
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		fmt.Fprint(os.Stderr, "token: ")
		text, err := term.ReadPassword(fd)
		fmt.Fprintln(os.Stderr)
		return string(text), err
	}
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), credentialsMax)).ReadString('\n')
	if err != nil && line == "" {
		return "", usageError{fault.New(fault.Invalid, "no token was given: pass it on standard input, with --token-file, or in %s", tokenVariable)}
	}
	return line, nil
}

func newLogout() *cobra.Command {
	return &cobra.Command{
		Use: "logout HOST:PORT", Short: "Forget the token that login has kept for a cluster", Args: cobra.ExactArgs(1),
		Long: `Logout removes what login has kept on this machine. The token itself stays good until it expires or an admin
revokes it ("godwit user token revoke").`,
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := serverAddress(args[0])
			if err != nil {
				return err
			}
			path, before, err := changeCredentials(server, nil)
			if err != nil {
				return fault.Wrap("keep credentials in", path, err)
			}
			if !before {
				return fault.New(fault.NotFound, "%s has nothing for %s", path, server)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "forgot the token for %s; until it is revoked or expires it is good elsewhere\n", server)
			return err
		},
	}
}

func newWhoAmI() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who the agent takes you for, and your role", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.users.WhoAmI(cmd.Context(), connect.NewRequest(&godwitv1.WhoAmIRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, %s of cluster %s\n", resp.Msg.GetName(), resp.Msg.GetRole(), resp.Msg.GetCluster())
			return err
		},
	}
}
