package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Folder is a folder of images: the root of a datastore. Paths that its methods take are absolute and lie below Root with all symbolic links
// resolved, as datastore.Resolve returns them; paths in what they return are relative to Root.
type Folder struct {
	Root  string           // with all symbolic links resolved
	Host  inventory.HostID // whose hidden files ours are
	Owner *Owner           // of the images
}

// Hidden names begin with a dot, so that no image can have one by accident, and carry the host that is to clean up after itself. A part is
// an image that is not complete; a gone one is being removed and is put back when that was interrupted.
const (
	partPrefix = ".godwit-part-"
	gonePrefix = ".godwit-gone-"
)

var randomRE = regexp.MustCompile(`^[0-9a-f]{16}$`)

// nameMax bounds a file's name, so that a hidden one with the host's name before it is still one (255 bytes on all file systems in use).
const nameMax = 150

func (f Folder) hidden(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24 release notes)
	return prefix + string(f.Host) + "-" + hex.EncodeToString(b[:])
}

// part is an image in the making.
type part struct {
	folder Folder
	path   string // hidden, in the folder of what it will be
	final  string
	owned  *Owner // who owns it: the folder's owner, nil when the file system forbids to give files away
}

// begin takes a hidden name beside path and refuses a name that is taken, which spares the work; publish asks again.
func (f Folder) begin(path string) (*part, error) {
	if len(filepath.Base(path)) > nameMax {
		return nil, fault.New(fault.Invalid, "its name is longer than %d bytes: choose a shorter one", nameMax)
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, errTaken
	}
	p := &part{folder: f, path: filepath.Join(filepath.Dir(path), f.hidden(partPrefix)), final: path}
	file, err := os.OpenFile(p.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fileError(err)
	}
	_ = file.Close() // nothing was written to it
	return p, nil
}

// errTaken refuses a name that is there. Nothing is ever overwritten.
var errTaken = fault.New(fault.Exists, "there is such a file already: choose another name")

// handOver gives the part to the images' owner, whom qemu-img runs as from then on.
func (p *part) handOver() error {
	p.owned = p.folder.Owner
	if p.owned == nil {
		return nil
	}
	err := os.Lchown(p.path, int(p.owned.UID), int(p.owned.GID))
	if errors.Is(err, fs.ErrPermission) { // NFS with root_squash: we are nobody there too
		p.owned = nil
		return nil
	}
	return fileError(err)
}

// publish writes the part to the disk and gives it its name. Of several at once one wins; the others get fault.Exists.
func (p *part) publish(mode os.FileMode) error {
	if err := os.Chmod(p.path, mode); err != nil {
		return fileError(err)
	}
	if err := sync(p.path); err != nil {
		return err
	}
	err := os.Link(p.path, p.final)
	switch {
	case errors.Is(err, fs.ErrExist):
		return errTaken
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.Incompatible, "its file system has no hard links, which keep two hosts from making the same image: %w", err)
	case err != nil:
		return fileError(err)
	}
	p.discard()
	return sync(filepath.Dir(p.final))
}

// discard removes the hidden name. What cannot be removed now is swept later.
func (p *part) discard() { _ = os.Remove(p.path) }

// sync flushes a file or folder to the disk.
func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fileError(err)
	}
	err = f.Sync()
	return fileError(errors.Join(err, f.Close()))
}

// Remove removes a file, unless check finds reasons to keep it. Check is called twice: first with the file in place, which is how nearly every
// refusal comes, then with the file hidden. Whoever begins to use a file publishes that first and looks whether the file is there afterwards
// (Clone does), so one of the two always notices the other, on whatever hosts they are.
func (f Folder) Remove(ctx context.Context, path string, check func(context.Context) error) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fileError(err)
	}
	name := filepath.Base(path)
	if !info.Mode().IsRegular() {
		return fault.New(fault.Invalid, "it is no regular file")
	}
	if err := check(ctx); err != nil {
		return err
	}
	if len(name) > nameMax {
		return fault.New(fault.Invalid, "its name is longer than %d bytes, which this command cannot remove: use rm", nameMax)
	}
	hidden := filepath.Join(filepath.Dir(path), f.hidden(gonePrefix)+"-"+name)
	if err := os.Rename(path, hidden); err != nil {
		return fileError(err)
	}
	if err := check(ctx); err != nil {
		return errors.Join(err, putBack(hidden, path))
	}
	if err := os.Remove(hidden); err != nil {
		return errors.Join(fileError(err), putBack(hidden, path))
	}
	return sync(filepath.Dir(path))
}

// putBack gives a hidden file its name again.
func putBack(hidden, path string) error {
	if err := os.Link(hidden, path); err != nil {
		return fault.New(fault.Internal, "it is now %s, and could not get its name back: %w", hidden, err)
	}
	return fileError(os.Remove(hidden))
}

// filesMax bounds how many files of a folder are looked at.
const filesMax = 100_000

// walk calls see for every regular file below the root that is not hidden, and hide, if given, for those that are.
func (f Folder) walk(ctx context.Context, see, hide func(path string) error) error {
	count := 0
	return filepath.WalkDir(f.Root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != f.Root:
			return nil // gone meanwhile
		case err != nil:
			return fileError(err)
		case ctx.Err() != nil:
			return fault.New(fault.Canceled, "%w", ctx.Err())
		case d.IsDir():
			// Below a hidden folder, and that of the lock records, there are no images.
			if path != f.Root && (strings.HasPrefix(d.Name(), ".") || path == filepath.Join(f.Root, "locks") || d.Name() == "lost+found") {
				return filepath.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		if count++; count > filesMax {
			return fault.New(fault.NoResources, "the datastore has more than %d files: move what is no image elsewhere", filesMax)
		}
		if strings.HasPrefix(d.Name(), ".") {
			if hide != nil {
				return hide(path)
			}
			return nil
		}
		if see == nil {
			return nil
		}
		return see(path)
	})
}

// Sweep removes what an agent of this host that was killed has left half made, and puts back what it was about to remove. Only an agent that has
// begun nothing yet may call it. It returns the paths that it saw to, relative to Root.
func (f Folder) Sweep(ctx context.Context) ([]string, error) {
	var swept []string
	err := f.walk(ctx, nil, func(path string) error {
		name := filepath.Base(path)
		ours := func(prefix string) (random string, ok bool) {
			return strings.CutPrefix(name, prefix+string(f.Host)+"-")
		}
		if random, ok := ours(partPrefix); ok && randomRE.MatchString(random) {
			swept = append(swept, f.relative(path))
			return fileError(os.Remove(path))
		}
		rest, ok := ours(gonePrefix)
		random, final, cut := strings.Cut(rest, "-")
		if !ok || !cut || !randomRE.MatchString(random) {
			return nil
		}
		swept = append(swept, f.relative(path))
		return putBack(path, filepath.Join(filepath.Dir(path), final))
	})
	return swept, err
}

// relative returns path relative to the root, with slashes.
func (f Folder) relative(path string) string {
	rel, err := filepath.Rel(f.Root, path)
	if err != nil {
		return path
	}
	return filepath.ToSlash(rel)
}

// free is what is left on the file system for its users.
func (f Folder) free() (inventory.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(f.Root, &st); err != nil {
		return 0, fileError(err)
	}
	return inventory.Bytes(int64(st.Bavail) * st.Frsize), nil //nolint:gosec // no file system has 2^63 blocks
}

// used is what a file takes on its file system.
func used(info os.FileInfo) inventory.Bytes {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return inventory.Bytes(st.Blocks * 512) // stat(2): in units of 512 bytes
	}
	return inventory.Bytes(info.Size())
}

// fileError gives what the file system says a kind and a way out. A nil error stays nil.
func fileError(err error) error {
	switch {
	case err == nil || fault.KindOf(err) != fault.Unknown:
		return err
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no such file: check the path")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.NoResources, "no space is left: free some space on the datastore")
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.ESTALE), errors.Is(err, unix.EIO), errors.Is(err, unix.ENOTCONN):
		return fault.New(fault.Unavailable, "%w: check the datastore's file system", err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		return fault.New(fault.Invalid, "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "%w", err)
	}
	return fault.New(fault.Internal, "%w", err)
}
