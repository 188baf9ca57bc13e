package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A backup is one file:
//
//	godwit-backup 1\n
//	manifest, JSON in one line\n
//	etcd's snapshot of one member, whole
//	SHA-256 of all of the above, 32 bytes
//
// The checksum finds damage; it does not prove who made the file. Whoever can read it has what the manifest's CAKey and Secret say, and whoever can
// change it changes the cluster that is restored from it.
const (
	backupMagic     = "godwit-backup 1\n"
	backupPrefix    = "godwit-backup "
	manifestMax     = 1 << 20
	snapshotReadMax = 10 * time.Minute
)

// Manifest says what a backup is of.
type Manifest struct {
	Cluster  string           `json:"cluster"`
	Host     inventory.HostID `json:"host"`    // that made it
	Made     time.Time        `json:"made"`    // by that host's clock
	Version  string           `json:"version"` // of Godwit
	Etcd     string           `json:"etcd"`
	Revision int64            `json:"revision"` // of the store, at least
	Members  []string         `json:"members"`  // hosts that carried the store
	VMs      int              `json:"vms"`
	CA       string           `json:"ca"`               // the cluster's certificate, PEM
	CAKey    string           `json:"ca_key,omitempty"` // its private key, PEM; empty: the host did not hold it
	Secret   []byte           `json:"secret,omitempty"` // that all hosts have; with CAKey
}

// Snapshot is one member's data as of one moment.
type Snapshot struct {
	Etcd     string // version of the member that it comes from
	Revision int64  // 0: the member did not say
	io.ReadCloser
}

// Snapshot reads the data of one member, which is the whole inventory as of one moment. The caller closes it; ctx bounds the
// reading too. Its last 32 bytes are etcd's own checksum.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotReadMax)
	resp, err := s.client.SnapshotWithVersion(ctx)
	if err != nil {
		cancel()
		return nil, fault.Wrap("back up", "store", s.explain(ctx, err))
	}
	return &Snapshot{Etcd: resp.Version, Revision: resp.Header.GetRevision(), ReadCloser: ending{resp.Snapshot, cancel}}, nil
}

// ending ends a context when its reader is closed.
type ending struct {
	io.ReadCloser

	end context.CancelFunc
}

// Close closes the reader and ends the context.
func (e ending) Close() error {
	defer e.end()
	return e.ReadCloser.Close()
}

// WriteBackup writes a backup: the manifest, and the snapshot to its end.
func WriteBackup(to io.Writer, m Manifest, snapshot io.Reader) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fault.New(fault.Internal, "backup: %w", err)
	}
	sum := sha256.New()
	out := io.MultiWriter(to, sum)
	if _, err := out.Write(append([]byte(backupMagic), append(text, '\n')...)); err != nil {
		return err
	}
	n, err := io.Copy(out, snapshot)
	if err != nil {
		return err
	}
	if n == 0 {
		return fault.New(fault.Unavailable, "backup: the store sent nothing: try again")
	}
	_, err = to.Write(sum.Sum(nil))
	return err
}

// Backup is a backup's file, read and found whole. The caller closes it.
type Backup struct {
	Manifest Manifest
	file     *os.File
	at, size int64 // of the snapshot
}

// OpenBackup reads a backup from its beginning to its end. What is no backup is fault.Invalid, one of a newer Godwit fault.Incompatible, and
// one that is cut off or changed fault.Invalid too, each in one line.
func OpenBackup(path string) (_ *Backup, err error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no file %s", path)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "backup: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close() // err says what matters
		}
	}()
	info, err := file.Stat()
	if err != nil {
		return nil, fault.New(fault.Internal, "backup: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is no file", path)
	}
	b := &Backup{file: file}
	if err := b.read(info.Size()); err != nil {
		return nil, fault.Wrap("backup", path, err)
	}
	return b, nil
}

func (b *Backup) read(size int64) error {
	damaged := fault.New(fault.Invalid, "it is damaged or was cut off: take another copy of it")
	sum := sha256.New()
	body := io.TeeReader(io.NewSectionReader(b.file, 0, max(0, size-sha256.Size)), sum)
	in := bufio.NewReader(body)
	magic, err := in.Peek(len(backupMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return fault.New(fault.Internal, "%w", err)
	}
	if !bytes.HasPrefix(magic, []byte(backupPrefix)) {
		return fault.New(fault.Invalid, "that is no backup of a cluster: godwit cluster backup makes one")
	}
	if string(magic) != backupMagic {
		return fault.New(fault.Incompatible, "it was made by a newer godwit, or its beginning is damaged: restore it with the godwit that made it")
	}
	_, _ = in.Discard(len(backupMagic)) // it was peeked at
	line, err := readLine(in)
	if err != nil || json.Unmarshal(line, &b.Manifest) != nil {
		return damaged
	}
	b.at = int64(len(backupMagic) + len(line) + 1)
	if b.size, err = io.Copy(io.Discard, in); err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	var end [sha256.Size]byte
	if _, err := b.file.ReadAt(end[:], size-sha256.Size); err != nil || !bytes.Equal(end[:], sum.Sum(nil)) {
		return damaged
	}
	if b.Manifest.Cluster == "" || b.Manifest.CA == "" || b.size == 0 {
		return damaged
	}
	return nil
}

// readLine reads to the next line break, which it leaves out.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return line[:len(line)-1], nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) || len(line) > manifestMax {
			return nil, fault.New(fault.Invalid, "no line of a sensible length")
		}
	}
}

// Snapshot returns the reader of the snapshot in the backup.
func (b *Backup) Snapshot() io.Reader { return io.NewSectionReader(b.file, b.at, b.size) }

// Close closes the file.
func (b *Backup) Close() error { return b.file.Close() }
