package main

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newToken() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make tokens with which hosts join"}
	var life time.Duration
	create := &cobra.Command{
		Use: "create", Short: "Print a one-time token for godwit join", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.hosts.CreateToken(cmd.Context(), connect.NewRequest(&godwitv1.CreateTokenRequest{Lifetime: durationpb.New(life)}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), resp.Msg.GetToken())
			return err
		},
	}
	create.Flags().DurationVar(&life, "life", time.Hour, "how long the token is good")
	cmd.AddCommand(create)
	return cmd
}
