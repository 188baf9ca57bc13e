// Package datastore knows directories on file systems that several hosts mount, and that hold the images of VMs.
//
// A datastore is a directory with a marker file that carries its identity: two hosts share a datastore when both read the
// same id, however they mount it. A mount that is missing shows as a directory without marker, never as an empty
// datastore. Beside the images there is a directory of lock records (lock.go), which say who may run a VM.
//
// The package neither mounts nor makes images. A Datastore may be used by many goroutines.
package datastore

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	// MarkerFile is the file in a datastore's root that makes it one.
	MarkerFile = ".godwit-datastore"

	locksDir  = "locks"
	markerMax = 4 << 10
	locksMode = 0o755 // only agents write there
)

// marker is the content of MarkerFile, written once by Create.
type marker struct {
	ID      inventory.DatastoreID `json:"id"`
	Name    string                `json:"name"`
	Created time.Time             `json:"created"`
}

// Owner is the user and group that QEMU runs as; negative numbers leave the owner as it is.
type Owner struct{ UID, GID int }

// KeepOwner changes no owner: for an agent that is not root.
var KeepOwner = Owner{-1, -1}

// Datastore is an open datastore. Its files are reached relative to the directory that was opened, so a mount that is
// put over it later, or taken away, is noticed by Check and never mixed up.
type Datastore struct {
	// ID and Name are the marker's; Path is where this host has it, absolute.
	ID   inventory.DatastoreID
	Name string
	Path string

	root *os.Root
}

// Create makes a datastore of a directory, which it makes when it is not there (mode 0770), and opens it. One that is a
// datastore already is fault.Exists.
//
// The directory is handed to the owner, group-writable and sticky, so that QEMU's user can make files there. The lock
// records stay the creator's. When only the group is handed over (UID -1), the sticky bit keeps a QEMU that a guest
// broke out of from moving them away; as owner of the directory it could.
func Create(dir, name string, owner Owner) (*Datastore, error) {
	if err := inventory.CheckName("datastore", name); err != nil {
		return nil, err
	}
	object := "datastore " + dir
	dir, err := absolute(dir)
	if err != nil {
		return nil, fault.Wrap("create", object, err)
	}
	if err := create(dir, name, owner); err != nil {
		return nil, fault.Wrap("create", object, err)
	}
	return Open(dir)
}

func create(dir, name string, owner Owner) error {
	made := false
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return explain(err)
		}
		made = true
	}
	root, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // nothing is pending on a directory
	info, err := root.Stat(".")
	if err != nil {
		return explain(err)
	}
	mode := info.Mode().Perm()
	if made {
		mode = 0o770
	}
	if err := root.Mkdir(locksDir, locksMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return explain(err)
	}
	if owner != KeepOwner {
		mode |= 0o070 | fs.ModeSticky
		if err := root.Chown(".", owner.UID, owner.GID); err != nil {
			return fault.New(fault.Denied, "it cannot be handed to user %d, group %d: %w: on NFS, export it with no_root_squash or chown it on the server", owner.UID, owner.GID, err)
		}
	}
	if err := root.Chmod(".", mode); err != nil {
		return explain(err)
	}
	b, err := json.Marshal(marker{ID: inventory.NewDatastoreID(), Name: name, Created: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return fault.New(fault.Internal, "marker: %w", err)
	}
	// The marker comes last: a directory with one is complete.
	err = writeOnce(root, MarkerFile, append(b, '\n'))
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "it is a datastore already: use it as it is")
	}
	return explain(err)
}

// Open opens a datastore. Each thing that can be wrong is one line: no such directory, not a directory, no marker.
func Open(dir string) (*Datastore, error) {
	object := "datastore " + dir
	dir, err := absolute(dir)
	if err != nil {
		return nil, fault.Wrap("open", object, err)
	}
	root, err := openRoot(dir)
	if err != nil {
		return nil, fault.Wrap("open", object, err)
	}
	m, err := readMarker(root)
	if err != nil {
		_ = root.Close() // err says what matters
		return nil, fault.Wrap("open", object, err)
	}
	return &Datastore{ID: m.ID, Name: m.Name, Path: dir, root: root}, nil
}

func readMarker(root *os.Root) (marker, error) {
	b, err := readSmall(root, MarkerFile, markerMax)
	if errors.Is(err, fs.ErrNotExist) {
		return marker{}, fault.New(fault.NotFound, "it has no marker file %s: mount it first, or make it a datastore with godwit datastore add", MarkerFile)
	}
	if err != nil {
		return marker{}, explain(err)
	}
	var m marker
	if err := json.Unmarshal(b, &m); err != nil || !strings.HasPrefix(string(m.ID), "ds-") || m.Name == "" {
		return marker{}, fault.New(fault.Internal, "its marker file %s is damaged: restore it from another host's record of the id", MarkerFile)
	}
	return m, nil
}

// Close lets go of the directory.
func (d *Datastore) Close() error { return d.wrap("close", d.root.Close()) }

// Check reads the marker again, at the path as it is now, and says whether this is still the datastore that was opened:
// fault.Unavailable when the mount is gone or another file system is mounted there.
func (d *Datastore) Check() error {
	now, err := Open(d.Path)
	if err != nil {
		return fault.New(fault.Unavailable, "datastore %s is not mounted at %s: mount it again: %w", d.Name, d.Path, err)
	}
	defer func() { _ = now.Close() }() // nothing is pending on a directory
	if now.ID != d.ID {
		return fault.New(fault.Unavailable, "another datastore (%s) is mounted at %s in place of %s: mount the right one", now.Name, d.Path, d.Name)
	}
	return nil
}

// Resolve returns the absolute path of a file of the datastore, with all symbolic links resolved, for QEMU. The file need
// not exist, its directory must. A path that leaves the datastore, by dots or by links, or means one of its own files,
// is fault.Invalid.
func (d *Datastore) Resolve(relative string) (string, error) {
	if err := checkPath(relative); err != nil {
		return "", d.wrap("", err)
	}
	// os.Root refuses every way out; what follows only spells the path.
	_, err := d.root.Stat(relative)
	last := ""
	if errors.Is(err, fs.ErrNotExist) {
		if _, dangling := d.root.Readlink(relative); dangling == nil {
			return "", d.wrap("", fault.New(fault.NotFound, "%s is a symbolic link to nothing: remove it", relative))
		}
		relative, last = path.Split(relative)
		relative = path.Clean(relative)
		if _, err = d.root.Stat(relative); errors.Is(err, fs.ErrNotExist) {
			return "", d.wrap("", fault.New(fault.NotFound, "there is no directory %s: make it first, or correct the path", relative))
		}
	}
	if err != nil {
		return "", d.wrap("", d.fileError(relative, err))
	}
	resolved, err := filepath.EvalSymlinks(filepath.Join(d.Path, relative))
	if err != nil {
		return "", d.wrap("", d.fileError(relative, err))
	}
	base, err := filepath.EvalSymlinks(d.Path)
	if err != nil {
		return "", d.wrap("", explain(err))
	}
	resolved = filepath.Join(resolved, last)
	inside, err := filepath.Rel(base, resolved)
	if err == nil {
		err = checkPath(filepath.ToSlash(inside))
	}
	if err != nil {
		return "", d.wrap("", err)
	}
	return resolved, nil
}

// Stat returns the size of a file and whether it is there; what is no regular file is fault.Invalid.
func (d *Datastore) Stat(relative string) (inventory.Bytes, error) {
	if err := checkPath(relative); err != nil {
		return 0, d.wrap("", err)
	}
	info, err := d.root.Stat(relative)
	if err != nil {
		return 0, d.wrap("", d.fileError(relative, err))
	}
	if !info.Mode().IsRegular() {
		return 0, d.wrap("", fault.New(fault.Invalid, "%s is no file", relative))
	}
	return inventory.Bytes(info.Size()), nil
}

// Remove deletes a file; one that is not there is no error.
func (d *Datastore) Remove(relative string) error {
	if err := checkPath(relative); err != nil {
		return d.wrap("", err)
	}
	if err := d.root.Remove(relative); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.wrap("", d.fileError(relative, err))
	}
	return nil
}

// Chown hands a file to QEMU's user. It does nothing for KeepOwner.
func (d *Datastore) Chown(relative string, owner Owner) error {
	if owner == KeepOwner {
		return nil
	}
	if err := checkPath(relative); err != nil {
		return d.wrap("", err)
	}
	if err := d.root.Chown(relative, owner.UID, owner.GID); err != nil {
		return d.wrap("", d.fileError(relative, err))
	}
	return nil
}

// Space returns the size of the file system and what is left of it for its users.
func (d *Datastore) Space() (free, total inventory.Bytes, err error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return 0, 0, d.wrap("", explain(err))
	}
	defer func() { _ = dir.Close() }() // only read
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, 0, d.wrap("", explain(err))
	}
	return inventory.Bytes(int64(st.Bavail) * st.Frsize), inventory.Bytes(int64(st.Blocks) * st.Frsize), nil
}

// checkPath takes clean relative paths that stay inside and do not mean the datastore's own files.
func checkPath(relative string) error {
	if relative == "" || path.Clean(relative) != relative || !filepath.IsLocal(relative) || strings.ContainsRune(relative, 0) {
		return fault.New(fault.Invalid, "%q is not a path inside the datastore: write it relative to its directory, without ..", relative)
	}
	first, _, _ := strings.Cut(relative, "/")
	if first == locksDir || strings.HasPrefix(first, MarkerFile) || relative == "." {
		return fault.New(fault.Invalid, "%q belongs to the datastore itself: choose another name", relative)
	}
	return nil
}

func absolute(dir string) (string, error) {
	if dir == "" {
		return "", fault.New(fault.Invalid, "no directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fault.New(fault.Internal, "%w", err)
	}
	return abs, nil
}

func (d *Datastore) wrap(op string, err error) error {
	return fault.Wrap(op, "datastore "+d.Name, err)
}
