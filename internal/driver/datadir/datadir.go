// Package datadir knows the layout of a host's data folder: which version it has, how to bring an older one to this version,
// and that one "godwit run" at a time uses it.
//
// The file "version" holds the number of the layout. A folder of a host without that file is version 1, the layout before
// there was one. Migrations go one version at a time; each may be cut off at any moment and is then done again from its
// beginning, since the version is written only after it is complete. A folder of a newer version is refused and left as it is.
//
// What is in the files is the business of those who write them: host.json of cmd/godwit, pki of driver/peer, store of etcd.
package datadir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Version is the layout that this program reads and writes.
const Version = 2

const (
	versionFile = "version"
	lockFile    = "lock"
	hostFile    = "host.json" // what makes a folder a host's
)

// Folder is a data folder that this process holds.
type Folder struct {
	// Path of the folder.
	Path string
	// From is the version that it had before it was opened.
	From int
	lock *os.File
}

// Open takes the folder for this process until Close or its end, and brings it to Version. A folder that another process holds is
// fault.Conflict with that one's PID; a newer version is fault.Incompatible; no folder of a host is fault.NotFound. Children do not
// inherit the hold.
func Open(dir string) (_ *Folder, err error) {
	if _, err := os.Stat(filepath.Join(dir, hostFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "%s is no data folder of a host: run godwit init for the first host of a cluster, godwit join for another", dir)
	}
	lock, err := hold(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close() // err says what matters
		}
	}()
	have, err := version(dir)
	if err != nil {
		return nil, err
	}
	for v := have; v < Version; v++ {
		if err := migrations[v](dir); err != nil {
			return nil, fault.New(fault.Internal, "data folder %s: from version %d to %d: %w", dir, v, v+1, err)
		}
		if err := setVersion(dir, v+1); err != nil {
			return nil, err
		}
	}
	return &Folder{Path: dir, From: have, lock: lock}, nil
}

// Close lets others have the folder.
func (f *Folder) Close() error { return f.lock.Close() }

// Check returns an error for a folder that this program must not read: one of a newer version, fault.Incompatible. It changes
// nothing; a folder that is not there, or is older, is nobody's error here.
func Check(dir string) error {
	_, err := version(dir)
	return err
}

// Init marks a new folder as one of this version.
func Init(dir string) error { return setVersion(dir, Version) }

// hold takes the lock, which the kernel gives back when the process ends (flock(2)).
func hold(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.New(fault.Internal, "data folder: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = errors.Join(file.Truncate(0), write(file, strconv.Itoa(os.Getpid())))
	}
	if err == nil {
		return file, nil
	}
	defer func() { _ = file.Close() }() // nothing of ours is in it
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fault.New(fault.Internal, "lock of data folder %s: %w", dir, err)
	}
	who := "another godwit run"
	if text, err := io.ReadAll(io.LimitReader(file, 32)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			who += fmt.Sprintf(" with PID %d", pid)
		}
	}
	return nil, fault.New(fault.Conflict, "data folder %s is in use by %s: end that one first, or give this one another folder", dir, who)
}

func write(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text+"\n"), 0)
	return err
}

// version reads the folder's version.
func version(dir string) (int, error) {
	path := filepath.Join(dir, versionFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, fault.New(fault.Internal, "data folder: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || n < 1 {
		return 0, fault.New(fault.Internal, "%s holds %.20q, which is no version: restore it from a backup", path, text)
	}
	if n > Version {
		return 0, fault.New(fault.Incompatible, "data folder %s has version %d and this godwit reads up to %d: upgrade godwit", dir, n, Version)
	}
	return n, nil
}

// setVersion writes the version such that after a loss of power there is the old one or the new one, and all that was written to
// the folder before.
func setVersion(dir string, n int) error {
	path := filepath.Join(dir, versionFile)
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fault.New(fault.Internal, "data folder: %w", err)
	}
	err = errors.Join(write(file, strconv.Itoa(n)), unix.Syncfs(int(file.Fd())), file.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = sync(dir)
	}
	if err != nil {
		return fault.New(fault.Internal, "data folder: %w", err)
	}
	return nil
}

func sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// OnTmpfs reports whether the folder, or the nearest one above it that is there, lies in memory and so is gone after a reboot.
func OnTmpfs(dir string) (bool, error) {
	var s unix.Statfs_t
	for {
		err := unix.Statfs(dir, &s)
		if err == nil {
			return s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC, nil
		}
		if up := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && up != dir {
			dir = up
			continue
		}
		return false, fault.New(fault.Internal, "run directory %s: %w", dir, err)
	}
}
