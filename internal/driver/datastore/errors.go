package datastore

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// explain gives what the file system says a kind and a way out. A nil error stays nil, one with a kind keeps it.
func explain(err error) error {
	if err == nil || fault.KindOf(err) != fault.Unknown {
		return err
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.NoResources, "no space is left: free some, or enlarge it")
	case errors.Is(err, unix.EROFS):
		return fault.New(fault.Unavailable, "it is mounted read-only: mount it read-write: %w", err)
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.EIO), errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ETIMEDOUT):
		return fault.New(fault.Unavailable, "the file system does not answer: check its server and mount it again: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "this host may not do that: check owner and mode (on NFS: no_root_squash): %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "%w", err)
	}
	return fault.New(fault.Internal, "%w", err)
}

// openRoot opens a directory. os.OpenRoot has no error of its own for what is none, so that is asked first.
func openRoot(dir string) (*os.Root, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no such directory: make it, or mount it first")
	case err == nil && !info.IsDir(), errors.Is(err, unix.ENOTDIR):
		return nil, fault.New(fault.Invalid, "it is not a directory: a datastore is one")
	case err != nil:
		return nil, explain(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, explain(err)
	}
	return root, nil
}

// fileError says what is wrong with one file. os.Root has no error of its own for a path that leads out; its text is
// "path escapes from parent" (package os, since Go 1.24), and it wraps neither of the known errors.
func (d *Datastore) fileError(relative string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && p.Err.Error() == "path escapes from parent" {
		return fault.New(fault.Invalid, "%s leads out of the datastore by a symbolic link: put the file itself there", relative)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no %s: check the path, or create the file with a size", relative)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Invalid, "%s: a part of the path is a file, not a directory", relative)
	}
	return fault.Wrap("", relative, explain(err))
}
