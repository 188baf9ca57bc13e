package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// folderMax bounds how long a folder may take to answer: a file system of a server that is away hangs for ever.
const folderMax = 5 * time.Second

// Free space below which a folder is worth a warning, and is bad.
const (
	dataLow   = 1 * inventory.GiB
	dataBad   = 128 * inventory.MiB
	storeLow  = 10 // percent of a datastore
	pageBytes = 4096
)

// folderFacts is a folder's file system.
type folderFacts struct {
	path        string // the folder, or the next one above that is there
	kind        string // "ext4", "nfs", "" when it is not known
	free, total inventory.Bytes
	err         error
}

// kinds names file systems by their magic numbers (statfs(2)).
var kinds = map[int64]string{
	unix.NFS_SUPER_MAGIC: "nfs", unix.CEPH_SUPER_MAGIC: "cephfs", 0x01161970: "gfs2", unix.OCFS2_SUPER_MAGIC: "ocfs2", unix.SMB2_SUPER_MAGIC: "cifs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs",
	unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs",
}

// network are the file systems that several hosts can mount.
var network = map[string]bool{"nfs": true, "cephfs": true, "gfs2": true, "ocfs2": true, "cifs": true, "fuse": true}

func readFolder(path string) folderFacts {
	for path != "/" && path != "." && path != "" {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			break
		}
		path = filepath.Dir(path)
	}
	f := folderFacts{path: path}
	var st unix.Statfs_t
	if f.err = unix.Statfs(path, &st); f.err == nil {
		f.kind = kinds[int64(st.Type)] //nolint:unconvert // another width on other architectures
		f.free = inventory.Bytes(int64(st.Bavail) * st.Frsize)
		f.total = inventory.Bytes(int64(st.Blocks) * st.Frsize)
	}
	return f
}

func judgeData(f folderFacts) Check {
	c := Check{Name: "data", State: Good, Detail: fmt.Sprintf("%v free at %s", f.free, f.path)}
	switch {
	case f.err != nil:
		c.State, c.Detail, c.Fix = Bad, f.err.Error(), "make the data folder readable, or name another with --data"
	case f.kind == "tmpfs" || f.kind == "ramfs":
		c.State, c.Fix = Bad, "put the data folder on a disk"
		c.Detail = fmt.Sprintf("%s is in memory (%s): the cluster would be lost with the next boot", f.path, f.kind)
	case network[f.kind]:
		c.State, c.Fix = Warn, "put the data folder on a disk of this machine"
		c.Detail += fmt.Sprintf(", which is a network file system (%s): the store waits for it", f.kind)
	case f.free < dataBad:
		c.State, c.Fix = Bad, "free space there: the store stops when the disk is full"
	case f.free < dataLow:
		c.State, c.Fix = Warn, "free space there: the store stops when the disk is full"
	}
	return c
}

func judgeRun(f folderFacts) Check {
	c := Check{Name: "run", State: Good, Detail: "sockets and journals are in memory at " + f.path}
	switch {
	case f.err != nil:
		c.State, c.Detail, c.Fix = Bad, f.err.Error(), "make the folder readable, or name another with --run"
	case f.kind != "tmpfs" && f.kind != "ramfs":
		c.State, c.Fix = Warn, "use /run/godwit, or another folder on tmpfs, with --run"
		c.Detail = f.path + " is not on tmpfs: a journal that outlives a boot describes processes that are gone"
	}
	return c
}

// storeFacts is a datastore as it was tried.
type storeFacts struct {
	Folder
	folderFacts
	marker error // it is no datastore
	direct error // O_DIRECT does not work
	lock   error // locks are not kept
	slow   bool  // it did not answer in time; nothing else is known
}

// folders tries all datastores at once. One that hangs is left to the kernel: nothing can end a call into a file system that is away.
func folders(ctx context.Context, c Config) []Check {
	if len(c.Datastores) == 0 && !c.Running {
		return nil // it is no host yet
	}
	if len(c.Datastores) == 0 {
		return []Check{{Name: "datastore", State: Warn, Detail: "this host has none", Fix: "godwit datastore add NAME=PATH"}}
	}
	checks := make([]Check, len(c.Datastores))
	var all sync.WaitGroup
	for i, folder := range c.Datastores {
		all.Go(func() {
			answer := make(chan storeFacts, 1)
			go func() { answer <- tryStore(folder) }()
			select {
			case f := <-answer:
				checks[i] = judgeStore(f)
			case <-time.After(folderMax):
				checks[i] = judgeStore(storeFacts{Folder: folder, slow: true})
			case <-ctx.Done():
				checks[i] = judgeStore(storeFacts{Folder: folder, slow: true})
			}
		})
	}
	all.Wait()
	return checks
}

// markerFile makes a folder a datastore (driver/datastore).
const markerFile = ".godwit-datastore"

func tryStore(folder Folder) storeFacts {
	f := storeFacts{Folder: folder}
	if _, f.marker = os.Stat(filepath.Join(folder.Path, markerFile)); f.marker != nil {
		return f
	}
	f.folderFacts = readFolder(folder.Path)
	if f.err == nil {
		f.direct, f.lock = tryFile(filepath.Join(folder.Path, fmt.Sprintf(".godwit-doctor-%d", os.Getpid())))
	}
	return f
}

// tryFile writes a page past the page cache and reads it back, and takes a lock that another open file must then not get, as
// QEMU's images want it (open file description locks, fcntl(2)). The file is removed again.
func tryFile(path string) (direct, lock error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open with O_DIRECT: %w", err), nil
	}
	defer func() { _ = unix.Close(fd); _ = os.Remove(path) }() // what could fail was tried before
	direct = tryPage(fd)
	other, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return direct, fmt.Errorf("open again: %w", err)
	}
	defer func() { _ = unix.Close(other) }() // nothing was written to it
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &whole); err != nil {
		return direct, fmt.Errorf("take a lock: %w", err)
	}
	again := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &again); err == nil {
		return direct, errors.New("two got the same lock")
	}
	return direct, nil
}

func tryPage(fd int) error {
	page, err := unix.Mmap(-1, 0, 2*pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned, as O_DIRECT wants it
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(page) }() // memory of our own
	written, back := page[:pageBytes], page[pageBytes:]
	copy(written, bytes.Repeat([]byte("godwit"), pageBytes/6))
	if _, err := unix.Pwrite(fd, written, 0); err != nil {
		return fmt.Errorf("write with O_DIRECT: %w", err)
	}
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if _, err := unix.Pread(fd, back, 0); err != nil {
		return fmt.Errorf("read with O_DIRECT: %w", err)
	}
	if !bytes.Equal(written, back) {
		return errors.New("what is read is not what was written")
	}
	return nil
}

func judgeStore(f storeFacts) Check {
	name := f.Name
	if name == "" {
		name = f.Path
	}
	c := Check{Name: "datastore", State: Good, Detail: fmt.Sprintf("%s: %v of %v free on %s", name, f.free, f.total, kindOr(f.kind))}
	bad := func(detail, fix string) Check {
		return Check{Name: "datastore", State: Bad, Detail: name + ": " + detail, Fix: fix}
	}
	switch {
	case f.slow:
		return bad(fmt.Sprintf("no answer within %v", folderMax), "check the server of its file system and the way there; mount it again")
	case f.marker != nil:
		return bad(f.marker.Error(), "mount it again, or make it a datastore with godwit datastore add NAME=PATH")
	case f.err != nil:
		return bad(f.err.Error(), "mount it again")
	case f.direct != nil:
		return bad("images cannot be opened with O_DIRECT: "+f.direct.Error(), "use a file system on a disk or NFS; tmpfs does not have it")
	case f.lock != nil:
		return bad("locks are not kept: "+f.lock.Error(), "mount NFS with version 4.2 and without nolock: without locks two VMs may write to one image")
	case f.kind == "tmpfs" || f.kind == "ramfs":
		c.State, c.Fix = Warn, "put it on a disk"
		c.Detail += ", which is in memory: images are lost with the next boot"
	case f.Shared && !network[f.kind]:
		c.State, c.Fix = Warn, "mount a network file system there on all hosts, or add it with ,local"
		c.Detail += ", which other hosts cannot mount: it counts as shared"
	case f.free*100 < f.total*storeLow:
		c.State, c.Fix = Warn, "delete or move images: VMs are paused when they cannot write"
	}
	return c
}

func kindOr(kind string) string {
	if kind == "" {
		return "a file system of unknown kind"
	}
	return kind
}
