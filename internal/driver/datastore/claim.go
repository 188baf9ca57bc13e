package datastore

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The names of claims and parts begin like the marker file's, so that no image can have one.
const (
	claimPrefix = MarkerFile + "-claim-"
	partPrefix  = MarkerFile + "-part-"

	claimMax  = 64 << 10 // bytes of one claim
	claimsMax = 1000     // of one host
)

// Claim is a note beside files of which it is not certain yet whether a VM has them: copies that are being made, and
// originals that are about to be left. It is on the disk before the files are touched, so that whoever starts after a crash
// finds them. A file that a claim names belongs to the VM whose spec in the store has it; when no spec has it, it is to be
// removed. Only the host that made a claim ends it.
type Claim struct {
	Host   inventory.HostID `json:"host"`   // that made it
	Op     string           `json:"op"`     // the operation: letters, digits and dashes; unique
	Driver inventory.HostID `json:"driver"` // the host whose agent decides what becomes of the files
	Epoch  uint64           `json:"epoch"`  // of that agent: once it is over, nothing is decided any more
	VM     inventory.VMID   `json:"vm"`
	Files  []string         `json:"files"` // paths on this datastore
}

func claimName(host inventory.HostID, op string) string { return claimPrefix + string(host) + "_" + op }

// Claim puts the note on the disk. A second one of the same operation replaces the first.
func (d *Datastore) Claim(c Claim) error {
	if err := errors.Join(inventory.CheckName("host", string(c.Host)), inventory.CheckName("operation", c.Op)); err != nil {
		return d.wrap("claim files on", err)
	}
	for _, f := range c.Files {
		if err := checkPath(f); err != nil {
			return d.wrap("claim files on", err)
		}
	}
	text, err := json.Marshal(c)
	if err != nil || len(text) > claimMax {
		return d.wrap("claim files on", fault.New(fault.Internal, "claim of %d bytes: %w", len(text), err))
	}
	name := claimName(c.Host, c.Op)
	tmp := partPrefix + string(c.Host) + "_" + rand.Text()
	err = writeNew(d.root, tmp, append(text, '\n'))
	if err == nil {
		err = d.root.Rename(tmp, name)
	}
	if err == nil {
		err = syncDir(d.root, name)
	}
	return d.wrap("claim files on", explain(err))
}

// Claims returns the host's claims. One that cannot be read is left out: it is there for a person to look at.
func (d *Datastore) Claims(host inventory.HostID) ([]Claim, error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return nil, d.wrap("claims on", explain(err))
	}
	defer func() { _ = dir.Close() }() // only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, d.wrap("claims on", explain(err))
	}
	slices.Sort(names)
	var claims []Claim
	for _, name := range names {
		if !strings.HasPrefix(name, claimName(host, "")) || len(claims) == claimsMax {
			continue
		}
		var c Claim
		text, err := readSmall(d.root, name, claimMax)
		if err != nil || json.Unmarshal(text, &c) != nil || claimName(c.Host, c.Op) != name {
			continue
		}
		claims = append(claims, c)
	}
	return claims, nil
}

// Claimed reports whether the host's claim of the operation can be seen here. It is how a host proves to another that both
// look at the same file system.
func (d *Datastore) Claimed(host inventory.HostID, op string) bool {
	_, err := d.root.Stat(claimName(host, op))
	return err == nil
}

// Unclaim removes the note, once what becomes of the files is certain; one that is not there is no error.
func (d *Datastore) Unclaim(host inventory.HostID, op string) error {
	name := claimName(host, op)
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.wrap("end a claim on", explain(err))
	}
	return nil
}

// Part is a file that is being made and has no name of its own yet. It is used by one goroutine.
type Part struct {
	*os.File // open for reading and writing; QEMU's tools find it at Path

	d    *Datastore
	name string
}

// NewPart begins a file, empty and readable by its owner only. Parts of the host that nobody finished are removed by SweepParts.
func (d *Datastore) NewPart(host inventory.HostID) (*Part, error) {
	name := partPrefix + string(host) + "_" + rand.Text()
	file, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, d.wrap("make a file on", explain(err))
	}
	return &Part{File: file, d: d, name: name}, nil
}

// Path is where the part is, absolute.
func (p *Part) Path() string { return path.Join(p.d.Path, p.name) }

// Finish gives the part its name, once its content is on the disk: from then on the file is there, whole, also after a loss of
// power. A file of that name is never replaced: fault.Exists. The part is closed and gone, whatever comes.
func (p *Part) Finish(relative string) error {
	err := checkPath(relative)
	if err == nil {
		err = explain(p.Sync())
	}
	err = errors.Join(err, explain(p.Close()))
	if err == nil {
		err = p.link(relative)
	}
	if removed := p.d.root.Remove(p.name); err == nil && removed != nil && !errors.Is(removed, fs.ErrNotExist) {
		err = explain(removed)
	}
	if err == nil {
		err = explain(syncDir(p.d.root, relative))
	}
	return p.d.wrap("", err)
}

// link makes the name appear in one step and only if it is free; without hard links, a name is looked for and then taken.
func (p *Part) link(relative string) error {
	err := p.d.root.Link(p.name, relative)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Exists, "there is a file %s already: choose another name, or remove it", relative)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOSYS):
		if _, err := p.d.root.Lstat(relative); err == nil {
			return fault.New(fault.Exists, "there is a file %s already: choose another name, or remove it", relative)
		}
		return explain(p.d.root.Rename(p.name, relative))
	case err != nil:
		return p.d.fileError(relative, err)
	}
	return nil
}

// Discard gives the part up. After Finish it does nothing.
func (p *Part) Discard() {
	_ = p.Close()               // of no use any more
	_ = p.d.root.Remove(p.name) // SweepParts takes what stays
}

// SweepParts removes what the host began and did not finish. It is called before the host begins anything.
func (d *Datastore) SweepParts(host inventory.HostID) error {
	dir, err := d.root.Open(".")
	if err != nil {
		return d.wrap("sweep", explain(err))
	}
	defer func() { _ = dir.Close() }() // only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return d.wrap("sweep", explain(err))
	}
	for _, name := range names {
		if !strings.HasPrefix(name, partPrefix+string(host)+"_") {
			continue
		}
		if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return d.wrap("sweep", explain(err))
		}
	}
	return nil
}
