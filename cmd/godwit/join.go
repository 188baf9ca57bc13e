package main

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
)

func newJoin() *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use: "join TOKEN", Short: "Make this machine a host of an existing cluster", Args: cobra.ExactArgs(1),
		Long: `Join takes a token that "godwit token create" printed on the cluster's first host. The token says where the
cluster is and which certificate authority it has, so nobody else can answer in its place; it is good for
one host. "godwit run" then starts the host.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := peer.ParseToken(args[0])
			if err != nil {
				return err
			}
			c, err := f.config()
			if err != nil {
				return err
			}
			if err := c.found(func() error { return c.join(cmd, token) }); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "host %s joined cluster %s: start it with godwit run --data %s\n", c.Host, c.Cluster, c.dir)
			return err
		},
	}
	f.register(cmd)
	return cmd
}

// join exchanges the token for a certificate. The host's key never leaves it.
func (c *hostConfig) join(cmd *cobra.Command, token peer.Token) error {
	request, err := peer.NewRequest(c.Host)
	if err != nil {
		return err
	}
	client := godwitv1connect.NewJoinServiceClient(peer.DialJoin(token), "https://"+token.Address)
	resp, err := client.Join(cmd.Context(), connect.NewRequest(&godwitv1.JoinRequest{
		Token: token.Text(), Host: string(c.Host), Csr: request.CSR(), Addresses: []string{c.Address},
	}))
	if err != nil {
		return fault.Wrap("join", "at "+token.Address, wire.FromFault(err))
	}
	if err := token.Verify(resp.Msg.GetCa()); err != nil {
		return err
	}
	if _, err := request.Save(c.pki(), resp.Msg.GetCa(), resp.Msg.GetCertificate()); err != nil {
		return err
	}
	c.Cluster, c.Endpoints = resp.Msg.GetCluster(), resp.Msg.GetStoreEndpoints()
	return nil
}
