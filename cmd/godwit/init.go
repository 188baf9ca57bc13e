package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/datadir"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newInit() *cobra.Command {
	var f hostFlags
	var store accessFlags
	var cluster string
	cmd := &cobra.Command{
		Use: "init", Short: "Make this machine the first host of a new cluster", Args: cobra.NoArgs,
		Long: `Init makes a cluster: its certificate authority, and this host's certificate and configuration. "godwit run" then
starts the host with the cluster's store, which grows to three and five members as hosts join. With
--etcd-endpoints the cluster uses an etcd of your own instead, which init must reach.`,
		Example: "  godwit init --address 192.0.2.11 --datastore shared=/mnt/vms",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config()
			if err != nil {
				return err
			}
			if err := inventory.CheckName("cluster", cluster); err != nil {
				return err
			}
			access, err := store.read()
			if err != nil {
				return err
			}
			c.Cluster, c.Member, c.Endpoints = cluster, true, []string{c.storeClient()}
			if access != nil {
				c.Foreign, c.Member, c.Endpoints = true, false, store.endpoints
			}
			if err := c.found(func() error {
				if _, err := peer.Init(c.pki(), cluster, c.Host, []string{c.Address}); err != nil || access == nil {
					return err
				}
				if err := saveAccess(c.pki(), access); err != nil {
					return err
				}
				return c.claimStore(cmd, access)
			}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "cluster %s made, host %s is its first: start it with godwit run --data %s\n", cluster, c.Host, c.dir)
			return err
		},
	}
	f.register(cmd)
	store.register(cmd)
	cmd.Flags().StringVar(&cluster, "cluster", "godwit", "name of the cluster")
	return cmd
}

// found makes the data folder: datastores, identity, and last the configuration, without which the folder counts as none. What
// a failed attempt left is removed, so that it can be repeated.
func (c *hostConfig) found(identity func() error) (err error) {
	if err := openDatastores(c.Datastores, c.User); err != nil {
		return err
	}
	_, statErr := os.Stat(c.dir)
	_, pkiErr := os.Lstat(c.pki())
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fault.New(fault.NoResources, "data folder: %w", err)
	}
	defer func() {
		if err != nil {
			if errors.Is(pkiErr, fs.ErrNotExist) { // one that was there is another cluster's identity, perhaps
				_ = os.RemoveAll(c.pki()) // the error that is returned is the one to tell
			}
			if statErr != nil {
				_ = os.Remove(c.dir)
			}
		}
	}()
	if err := hasRoom(c.dir); err != nil {
		return err
	}
	if err := identity(); err != nil {
		return err
	}
	if err := datadir.Init(c.dir); err != nil {
		return err
	}
	return c.save()
}

// foundBytes is more than a new host's folder takes before the host runs.
const foundBytes = 256 << 10

// hasRoom finds out whether the folder takes what a new host writes: a token is spent before the certificate that it brings is written.
func hasRoom(dir string) error {
	path := filepath.Join(dir, "room.new")
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fault.New(fault.NoResources, "data folder: %w", err)
	}
	_, err = file.Write(make([]byte, foundBytes))
	if err == nil {
		err = file.Sync()
	}
	_ = file.Close() // what counts is on the disk, or err says why not
	_ = os.Remove(path)
	if err != nil {
		return fault.New(fault.NoResources, "data folder %s has no room for a host: %w: make room, or take another folder with --data", dir, err)
	}
	return nil
}
