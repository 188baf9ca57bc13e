package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newClusterBackup() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write the cluster's store to a file", Args: cobra.ExactArgs(1),
		Long: `Backup writes the whole store as of one moment to a new file: hosts, VMs, networks, migrations, tasks,
events, tokens (their hashes), and the certificate of the cluster's CA. On a host, and for a user who can read its
keys (root), the CA's private key and the secret of the hosts are in the file too; the answer says whether they are.
The file has mode 0600 and a checksum. Whoever has a file with the key can make hosts of the cluster: keep it as you
keep that key.

VMs' disks are not in it: they are on the datastores. So are the lock records by which a restored cluster knows
what has happened since.`,
		Example: "  godwit cluster backup /srv/godwit.backup",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			stream, err := c.cluster.BackUp(cmd.Context(), connect.NewRequest(&godwitv1.BackUpRequest{}))
			if err != nil {
				return faultsOf(cmd).read(err)
			}
			pieces := &pieces{stream: stream, read: faultsOf(cmd).read}
			defer func() { _ = stream.Close() }() // it was read to its end, or an error is told
			m, err := pieces.manifest()
			if err != nil {
				return err
			}
			withKey, err := keepTrust(cmd.Context(), data, &m)
			if err != nil {
				return err
			}
			if err := writeNew(args[0], func(to io.Writer) error { return store.WriteBackup(to, m, pieces) }); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "cluster %s with %d VMs written to %s as of revision %d, %s\n", m.Cluster, m.VMs, args[0], m.Revision, withKey)
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultData, "data folder of the host, for the CA's key")
	return cmd
}

// keepTrust puts the key of the cluster's CA and the secret of its hosts into the manifest where this machine and user have them, and says in
// words whether they do.
func keepTrust(ctx context.Context, data string, m *store.Manifest) (said string, err error) {
	c, err := loadConfig(data)
	if err == nil {
		err = c.keepTrust(ctx, m)
	}
	switch {
	case err == nil:
		return "with the private key of its CA", nil
	case errors.Is(err, fs.ErrPermission):
		return "without the private key of its CA, which this user may not read", nil
	case fault.Is(err, fault.NotFound):
		return "without the private key of its CA, which this machine does not have: make a backup on a host of the cluster", nil
	}
	return "", err
}

// keepTrust is fault.NotFound on a host that has neither the key of the CA nor the secret that opens the store's.
func (c *hostConfig) keepTrust(ctx context.Context, m *store.Manifest) error {
	identity, err := peer.Load(c.pki())
	if err != nil {
		return err
	}
	if ca, _ := pem.Decode([]byte(m.CA)); ca == nil || !bytes.Equal(ca.Bytes, identity.CA()) {
		return fault.New(fault.NotFound, "%s is the data folder of a host of another cluster", c.dir)
	}
	secret, err := peer.LoadSecret(c.pki())
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	ca, err := peer.LoadCA(c.pki())
	if fault.Is(err, fault.NotFound) && len(secret) > 0 {
		ca, err = c.unsealCA(ctx, identity, secret)
	}
	if err != nil {
		return err
	}
	key, err := ca.Key()
	m.CAKey, m.Secret = string(key), secret
	return err
}

// unsealCA opens the store's key of the CA, as the agent does when it signs.
func (c *hostConfig) unsealCA(ctx context.Context, identity *peer.Identity, secret []byte) (*peer.CA, error) {
	s, err := c.openStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }() // read only
	box, err := s.SealedCA(ctx)
	if err != nil {
		return nil, err
	}
	return identity.UnsealCA(secret, box)
}

// writeNew writes a file that was not there, readable by nobody else, whole or not at all.
func writeNew(path string, write func(io.Writer) error) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "%s is there already: choose another name", path)
	}
	if err != nil {
		return fault.New(fault.Invalid, "backup: %w", err)
	}
	err = write(file)
	if fault.KindOf(err) == fault.Unknown && err != nil {
		err = fault.New(fault.NoResources, "backup: %w", err)
	}
	if err == nil {
		if err = errors.Join(file.Sync()); err != nil {
			err = fault.New(fault.NoResources, "backup: %w", err)
		}
	}
	err = errors.Join(err, file.Close())
	if err != nil {
		_ = os.Remove(path) // err says what matters
	}
	return err
}

// pieces reads a backup's stream.
type pieces struct {
	stream *connect.ServerStreamForClient[godwitv1.BackUpResponse]
	read   func(error) error
	rest   []byte
}

// manifest reads what the backup is of.
func (p *pieces) manifest() (store.Manifest, error) {
	if !p.stream.Receive() {
		if err := p.stream.Err(); err != nil {
			return store.Manifest{}, p.read(err)
		}
	}
	head := p.stream.Msg().GetHead()
	if head == nil {
		return store.Manifest{}, fault.New(fault.Unavailable, "backup: the agent sent nothing: try again")
	}
	return store.Manifest{
		Cluster: head.GetCluster(), Host: inventory.HostID(head.GetHost()), Made: time.Now(), Version: head.GetVersion(), Etcd: head.GetEtcd(),
		Revision: head.GetRevision(), Members: head.GetMembers(), VMs: int(head.GetVms()),
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: head.GetCa()})),
	}, nil
}

// Read reads the snapshot.
func (p *pieces) Read(into []byte) (int, error) {
	for len(p.rest) == 0 {
		if !p.stream.Receive() {
			if err := p.stream.Err(); err != nil {
				return 0, p.read(err)
			}
			return 0, io.EOF
		}
		p.rest = p.stream.Msg().GetPiece()
	}
	n := copy(into, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
