package main

import (
	"cmp"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newDatastore() *cobra.Command {
	cmd := &cobra.Command{Use: "datastore", Short: "Add and list folders for images"}
	cmd.AddCommand(newDatastoreAdd(), newDatastoreList())
	return cmd
}

func newDatastoreAdd() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use: "add NAME=PATH[,local]", Short: "Give this host a datastore", Args: cobra.ExactArgs(1),
		Long: `Add makes a folder a datastore of this host. A folder that is one already (another host added it, and both
mount the same file system) keeps its identity. The agent knows it when it starts next.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(data)
			if err != nil {
				return err
			}
			ds, err := parseDatastore(args[0])
			if err != nil {
				return err
			}
			add := func(c *hostConfig) error {
				for _, have := range c.Datastores {
					if have.Name == ds.Name || have.Path == ds.Path {
						return fault.New(fault.Exists, "this host has datastore %s at %s already", have.Name, have.Path)
					}
				}
				c.Datastores = append(c.Datastores, ds)
				return nil
			}
			if err := add(c); err != nil {
				return err
			}
			if err := openDatastores([]hostDatastore{ds}, c.User); err != nil { // before the change, which waits for no mount
				return err
			}
			if err := c.change(add); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "datastore %s added: restart the agent to use it\n", ds.Name)
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultData, "data folder of the host")
	return cmd
}

func newDatastoreList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the datastores of all hosts", Args: cobra.NoArgs,
		Long: `Ls lists the datastores of all hosts. ARBITER says who keeps two hosts from writing to one image. Where it is
"lease", a host that has lost the store stops its VMs there until it is back. Where it is "storage", they run on: NFS 4
fails the writes of a host that has lost its lock, and a local datastore no other host has. "godwit doctor" says why.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.hosts.ListHosts(cmd.Context(), connect.NewRequest(&godwitv1.ListHostsRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, h := range resp.Msg.GetHosts() {
				for _, d := range h.GetSpec().GetDatastores() {
					kind := "shared"
					if !d.GetShared() {
						kind = "local"
					}
					arbiter := cmp.Or(d.GetArbiter(), "lease") // of an older host
					rows = append(rows, []string{d.GetName(), h.GetId(), kind, arbiter, d.GetPath(), d.GetId()})
				}
			}
			return table(cmd.OutOrStdout(), []string{"NAME", "HOST", "KIND", "ARBITER", "PATH", "ID"}, rows)
		},
	}
}
