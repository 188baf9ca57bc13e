package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
)

func newJoin() *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use: "join TOKEN", Short: "Make this machine a host of an existing cluster", Args: cobra.ExactArgs(1),
		Long: `Join takes a token that "godwit token create" printed on any host of the cluster. The token says where that host
is and which certificate authority the cluster has, so nobody else can answer in its place; it is good for
one host. "godwit run" then starts the host.`,
		RunE: func(cmd *cobra.Command, args []string) error { return joinWith(cmd, args[0], &f, false) },
	}
	f.register(cmd)
	return cmd
}

func newWitness() *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use: "witness TOKEN", Short: "Make this machine a witness of an existing cluster", Args: cobra.ExactArgs(1),
		Long: `A witness carries a member of the cluster's store and nothing else: no VMs, no switch, no QEMU. Two hosts and a
witness go on when any one of the three is lost; two hosts alone do not. The token is that of a join, from
"godwit token create". "godwit run" then starts the witness.`,
		Example: "  godwit witness --address 192.0.2.19 TOKEN",
		RunE:    func(cmd *cobra.Command, args []string) error { return joinWith(cmd, args[0], &f, true) },
	}
	f.registerMachine(cmd)
	return cmd
}

// joinWith makes the data folder of a host or witness that joins by the token.
func joinWith(cmd *cobra.Command, text string, f *hostFlags, witness bool) error {
	token, err := peer.ParseToken(text)
	if err != nil {
		return err
	}
	c, err := f.config()
	if err != nil {
		return err
	}
	what := "host"
	if c.Witness = witness; witness {
		what = "witness"
	}
	var undo func() error
	err = c.found(func() error {
		undo, err = c.join(cmd, token)
		return err
	})
	if err != nil {
		if undo != nil {
			if undone := undo(); undone != nil {
				return fault.New(fault.KindOf(err), "%w; the cluster could not be told that (%w): before the next try, there, run godwit host remove %s", err, undone, c.Host)
			}
		}
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s joined cluster %s: start it with godwit run --data %s\n", what, c.Host, c.Cluster, c.dir)
	return err
}

// join exchanges the token for a certificate. The host's key never leaves it. What fails after the cluster has taken the host in is undone by
// undo, which is nil before.
func (c *hostConfig) join(cmd *cobra.Command, token peer.Token) (undo func() error, err error) {
	request, err := peer.NewRequest(c.Host)
	if err != nil {
		return nil, err
	}
	caller := peer.DialJoin(token)
	client := godwitv1connect.NewJoinServiceClient(caller, "https://"+token.Address)
	resp, err := client.Join(cmd.Context(), connect.NewRequest(&godwitv1.JoinRequest{
		Token: token.Text(), Host: string(c.Host), Csr: request.CSR(), Addresses: []string{c.Address}, Witness: c.Witness, Now: timestamppb.Now(),
	}))
	undo = func() error {
		ctx, done := context.WithTimeout(context.WithoutCancel(cmd.Context()), undoMax)
		defer done()
		_, err := godwitv1connect.NewLeaveServiceClient(caller, "https://"+token.Address).Leave(ctx, connect.NewRequest(&godwitv1.LeaveRequest{
			Token: token.Text(), Host: string(c.Host), Csr: request.CSR(),
		}))
		return wire.FromFault(err)
	}
	if err != nil {
		err = fault.Wrap("join", "at "+token.Address, unheard(err))
		if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Canceled) {
			return nil, err // it has answered, and said no
		}
		_ = undo() // nobody knows whether it was done; when that cannot be reached either, nobody can say more
		return nil, err
	}
	if err := token.Verify(resp.Msg.GetCa()); err != nil {
		return nil, err
	}
	return undo, c.admit(request, resp.Msg)
}

// undoMax bounds the undoing of a join.
const undoMax = 10 * time.Second

// admit writes down what the cluster gave to a host that joins.
func (c *hostConfig) admit(request *peer.Request, welcome *godwitv1.JoinResponse) error {
	identity, err := request.Save(c.pki(), welcome.GetCa(), welcome.GetCertificate())
	if err != nil {
		return err
	}
	if len(welcome.GetRevocations()) > 0 {
		if err := identity.SaveRevoked(welcome.GetRevocations()); err != nil {
			return err
		}
	}
	if len(welcome.GetSecret()) > 0 {
		if err := peer.SaveSecret(c.pki(), welcome.GetSecret()); err != nil {
			return err
		}
	}
	if x := welcome.GetStoreAccess(); x != nil {
		c.Foreign = true
		if err := saveAccess(c.pki(), &agent.StoreAccess{CA: x.GetCa(), Certificate: x.GetCertificate(), Key: x.GetKey()}); err != nil {
			return err
		}
	}
	c.Cluster, c.Endpoints = welcome.GetCluster(), welcome.GetStoreEndpoints()
	return nil
}

// unheard returns what kept a call from being answered when that is known better here than on the wire: the other side is not who the token
// speaks of, or does not listen.
func unheard(err error) error {
	if connect.IsWireError(err) {
		return wire.FromFault(err)
	}
	if own, is := errors.AsType[*fault.Error](err); is {
		return own
	}
	if refused(err) {
		return fault.New(fault.Unavailable, "no host answers: check that godwit runs there and that the network reaches it: %w", err)
	}
	return wire.FromFault(err)
}
