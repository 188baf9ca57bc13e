package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/datadir"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newClusterRestore() *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make a new store out of a backup, on a stopped host", Args: cobra.ExactArgs(1),
		Long: `Restore makes this host carry the cluster's store, alone, as the backup has it. Godwit must not run on this host, nor
on any other that carried the store; VMs run on. The store that was there is kept beside the new one.

On a machine that is no host yet the backup must hold the private key of the CA, and the flags say what "godwit init"
would want to know. On a host they do not count.

Hosts go on with what runs on them. A VM that the backup does not know is never ended; the log and the events of its host
name it. A VM that has moved since is taken over by the host that runs it. A VM that another host has started
since is not started here. Epochs and generations go on 1000 above those of the backup; tokens are not restored.
See docs/cluster.md.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := store.OpenBackup(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = b.Close() }() // read only
			_, nowhere := os.Stat(f.data)
			c, err := loadConfig(f.data)
			fresh := fault.Is(err, fault.NotFound)
			if fresh {
				c, err = f.refound(b.Manifest)
			}
			if err != nil {
				return err
			}
			done, kept, err := c.restore(cmd.Context(), b)
			if err != nil {
				// err says what matters: what was made is removed again, so that it can be repeated.
				if fresh {
					_ = os.RemoveAll(c.pki())
					for _, name := range []string{"host.json", "version", "lock"} {
						_ = os.Remove(filepath.Join(c.dir, name))
					}
				}
				if nowhere != nil {
					_ = os.Remove(c.dir)
				}
				return err
			}
			return c.tellRestored(cmd.OutOrStdout(), b.Manifest, done, kept)
		},
	}
	f.register(cmd)
	return cmd
}

// refound makes this machine the first host of a cluster that was kept in a backup.
func (f *hostFlags) refound(m store.Manifest) (*hostConfig, error) {
	if m.CAKey == "" {
		return nil, fault.New(fault.Incompatible, "this machine is no host, and the backup does not hold the private key of the cluster's CA: restore it on a host of cluster %s, or take a backup on a host as root", m.Cluster)
	}
	c, err := f.config()
	if err != nil {
		return nil, err
	}
	c.Cluster = m.Cluster
	c.Endpoints = []string{c.storeClient()}
	return c, c.found(func() error {
		_, err := peer.Found(c.pki(), peer.Kept{CA: []byte(m.CA), CAKey: []byte(m.CAKey), Secret: m.Secret}, c.Host, []string{c.Address})
		return err
	})
}

// restore replaces the host's store. It returns where the former one is kept; empty: there was none.
func (c *hostConfig) restore(ctx context.Context, b *store.Backup) (done store.Restored, kept string, err error) {
	if c.Foreign {
		return done, "", fault.New(fault.Conflict, "the store of cluster %s is not Godwit's own: restore it with its own tools", c.Cluster)
	}
	held, err := datadir.Open(c.dir)
	if err != nil {
		return done, "", err
	}
	defer func() { _ = held.Close() }() // the end of the process does the same
	identity, err := peer.Load(c.pki())
	if err != nil {
		return done, "", err
	}
	if ca, _ := pem.Decode([]byte(b.Manifest.CA)); b.Manifest.Cluster != c.Cluster || ca == nil || !bytes.Equal(ca.Bytes, identity.CA()) {
		return done, "", fault.New(fault.Denied, "the backup is of another cluster (%s, made on %s) than this host (%s)", b.Manifest.Cluster, b.Manifest.Host, c.Cluster)
	}
	if living := c.livingStores(ctx); len(living) > 0 {
		return done, "", fault.New(fault.Conflict, "the cluster's store still answers at %s, and two stores would lead the same hosts: end godwit there, move the folders of its data folder that begin with store away, and then restore", strings.Join(living, ", "))
	}
	was := c.storeDir()
	c.Folder, c.MemberID, c.StoreJoin = "", 0, "" // the restored member founds its store
	dir := c.storeDir()
	aside := was + ".before-" + time.Now().UTC().Format("20060102T150405Z")
	if err := os.Rename(was, aside); err == nil {
		kept = aside
	} else if !errors.Is(err, fs.ErrNotExist) {
		return done, "", fault.New(fault.Internal, "store: %w", err)
	}
	done, err = store.Restore(ctx, store.RestoreConfig{Backup: b, TLS: identity.StoreTLS(), Server: store.ServerConfig{
		Name: string(c.Host), Dir: dir,
		ClientURL: c.storeClient(), PeerURL: c.storePeer(),
		CAFile: filepath.Join(c.pki(), peer.CACertificateFile), CertFile: filepath.Join(c.pki(), peer.CertificateFile),
		KeyFile: filepath.Join(c.pki(), peer.KeyFile),
	}})
	if err == nil {
		c.Member, c.Endpoints = true, []string{c.storeClient()}
		if err = c.save(); err != nil {
			err = errors.Join(err, store.RemoveData(dir)) // what a failed Restore leaves there is not its own
		}
	}
	if err != nil {
		if kept != "" {
			err = errors.Join(err, os.Rename(kept, was))
		}
		return done, "", err
	}
	return done, kept, nil
}

// livingStores returns the addresses of other hosts at which a member of the store listens, as far as this host knows them.
func (c *hostConfig) livingStores(ctx context.Context) []string {
	var living []string
	for _, endpoint := range c.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Hostname() == c.Address {
			continue
		}
		dialer := net.Dialer{Timeout: time.Second}
		if conn, err := dialer.DialContext(ctx, "tcp", u.Host); err == nil {
			_ = conn.Close() // nothing was sent
			living = append(living, u.Host)
		}
	}
	return living
}

// tellRestored says what there is now, and what is left to do.
func (c *hostConfig) tellRestored(out io.Writer, m store.Manifest, done store.Restored, kept string) error {
	lines := []string{fmt.Sprintf("cluster %s restored as of %s: %d hosts, %d VMs; %d migrations failed, %d tokens forgotten",
		m.Cluster, m.Made.UTC().Format(time.RFC3339), done.Hosts, done.VMs, done.Migrations, done.Tokens)}
	if kept != "" {
		lines = append(lines, "the former store is kept in "+kept)
	}
	others := slices.DeleteFunc(slices.Clone(m.Members), func(name string) bool { return name == string(c.Host) })
	if len(others) > 0 {
		lines = append(lines, "these hosts carried the store too: move the folders of their data folders that begin with store away before you start godwit there: "+strings.Join(others, ", "))
	}
	lines = append(lines, "start this host with godwit run --data "+c.dir+", then the others")
	_, err := fmt.Fprintln(out, strings.Join(lines, "\n"))
	return err
}
