package oracle

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or folder as one mount sees it.
type node struct {
	fs.LoopbackNode
	mount *Mount
}

var (
	_ fs.NodeWrapChilder = (*node)(nil)
	_ fs.NodeOpener      = (*node)(nil)
	_ fs.NodeCreater     = (*node)(nil)
	_ fs.NodeLinker      = (*node)(nil)
	_ fs.NodeSetattrer   = (*node)(nil)
)

// WrapChild makes what is below a node a node, too.
func (n *node) WrapChild(context.Context, fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: fs.LoopbackNode{RootData: n.RootData}, mount: n.mount}
}

// where is the node's path below the folder.
func (n *node) where() string { return n.Path(n.RootData.RootNode.EmbeddedInode()) }

// Open opens the file past the kernel's cache: two mounts must see each other's writes, and O_DIRECT is granted by that.
func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	file, err := os.OpenFile(filepath.Join(n.RootData.Path, n.where()), int(flags)&^(syscall.O_DIRECT|syscall.O_APPEND|fuse.FMODE_EXEC), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return n.mount.opened(ctx, file, flags), fuse.FOPEN_DIRECT_IO, 0
}

// Create makes a file, of whoever asked for it.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	o := n.mount.oracle
	o.mu.Lock()
	if n.mount.refuses() { // since it passed the gate
		o.mu.Unlock()
		return nil, nil, 0, syscall.EIO
	}
	inode, plain, _, errno := n.LoopbackNode.Create(ctx, name, flags&^syscall.O_DIRECT, mode, out)
	if errno == 0 {
		n.mount.record(filepath.Join(n.where(), name))
	}
	o.mu.Unlock()
	if errno != 0 {
		return nil, nil, 0, errno
	}
	// The loopback's own handle is not ours to look into.
	_ = plain.(fs.FileReleaser).Release(ctx) // nothing was written by it
	file, err := os.OpenFile(filepath.Join(n.RootData.Path, n.where(), name), int(flags)&^(syscall.O_DIRECT|syscall.O_APPEND|syscall.O_CREAT|syscall.O_EXCL|syscall.O_TRUNC), 0)
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	return inode, n.mount.opened(ctx, file, flags), fuse.FOPEN_DIRECT_IO, 0
}

// Link makes a name appear in one step, as a lock record does.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	o := n.mount.oracle
	o.mu.Lock()
	defer o.mu.Unlock()
	if n.mount.refuses() { // since it passed the gate
		return nil, syscall.EIO
	}
	inode, errno := n.LoopbackNode.Link(ctx, target, name, out)
	if errno == 0 {
		n.mount.record(filepath.Join(n.where(), name))
	}
	return inode, errno
}

// record enters a lock record that was made; the oracle's lock is held.
func (m *Mount) record(relative string) {
	if vm, generation, ok := lockRecord(relative); ok {
		m.oracle.enter(Entry{Kind: Locked, Host: m.Host, VM: vm, Generation: generation})
	}
}

// Setattr changes owner, mode or size; a size is entered.
func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	size, sized := in.GetSize()
	if !sized || ours(n.where()) {
		return n.LoopbackNode.Setattr(ctx, nil, in, out)
	}
	h, _ := f.(*handle)
	e := Entry{Kind: Sized, Host: n.mount.Host, File: n.where(), Offset: int64(size)}
	if h != nil {
		e = h.entry(Sized, int64(size), 0)
	} else if caller, ok := fuse.FromContext(ctx); ok {
		e.Process, e.Program = process(caller.Pid)
	}
	o := n.mount.oracle
	o.mu.Lock()
	defer o.mu.Unlock()
	if h.denied() {
		e.Kind = Denied
		o.enter(e)
		return syscall.EIO
	}
	errno := n.LoopbackNode.Setattr(ctx, nil, in, out)
	if errno == 0 {
		o.enter(e)
	}
	return errno
}

// handle is a file that a process of the host has open.
type handle struct {
	mount   *Mount
	file    *os.File
	name    string // below the folder, when it was opened
	process int
	program string

	// Under mount.mu.
	locked   bool // it has taken a byte-range lock
	lost     bool // and was cut off for so long that it lost it
	released bool // its process has closed it while the mount was cut off
}

var (
	_ fs.FileReader    = (*handle)(nil)
	_ fs.FileWriter    = (*handle)(nil)
	_ fs.FileReleaser  = (*handle)(nil)
	_ fs.FileFlusher   = (*handle)(nil)
	_ fs.FileFsyncer   = (*handle)(nil)
	_ fs.FileGetattrer = (*handle)(nil)
	_ fs.FileLseeker   = (*handle)(nil)
	_ fs.FileAllocater = (*handle)(nil)
	_ fs.FileGetlker   = (*handle)(nil)
	_ fs.FileSetlker   = (*handle)(nil)
	_ fs.FileSetlkwer  = (*handle)(nil)
)

// opened makes the handle of a file that a process has opened, and enters that when it may write.
func (m *Mount) opened(ctx context.Context, file *os.File, flags uint32) *handle {
	h := &handle{mount: m, file: file, name: m.oracle.relative(file.Name())}
	if caller, ok := fuse.FromContext(ctx); ok {
		h.process, h.program = process(caller.Pid)
	}
	m.mu.Lock()
	m.open[h] = true
	m.mu.Unlock()
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY && !ours(h.name) {
		m.oracle.mu.Lock()
		m.oracle.enter(h.entry(Opened, 0, 0))
		m.oracle.mu.Unlock()
	}
	return h
}

func (h *handle) entry(kind Kind, offset, length int64) Entry {
	return Entry{Kind: kind, Host: h.mount.Host, Process: h.process, Program: h.program, File: h.name, Offset: offset, Length: length}
}

// denied says whether the storage refuses what is written by the handle: it has lost its locks, or its host was reset since the request came.
// A nil handle is nobody's.
func (h *handle) denied() bool {
	if h == nil {
		return false
	}
	h.mount.mu.Lock()
	defer h.mount.mu.Unlock()
	return h.lost && !h.mount.oracle.options.LostLocksPass || h.mount.trouble == Gone || h.mount.trouble == Failing
}

// deed does something to the file and enters it, in one step.
func (h *handle) deed(e Entry, do func(fd int) error) syscall.Errno {
	o := h.mount.oracle
	o.mu.Lock()
	defer o.mu.Unlock()
	if h.denied() {
		e.Kind = Denied
		o.enter(e)
		return syscall.EIO
	}
	err := do(int(h.file.Fd()))
	if err == nil && !ours(h.name) {
		o.enter(e)
	}
	return fs.ToErrno(err)
}

// Write writes and enters it.
func (h *handle) Write(_ context.Context, data []byte, offset int64) (uint32, syscall.Errno) {
	e := h.entry(Wrote, offset, int64(len(data)))
	e.Number = numberIn(data)
	errno := h.deed(e, func(int) error {
		_, err := h.file.WriteAt(data, offset)
		return err
	})
	if errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0 //nolint:gosec // a request is at most 1 MiB
}

// Allocate reserves, discards or zeroes.
func (h *handle) Allocate(_ context.Context, offset, size uint64, mode uint32) syscall.Errno {
	return h.deed(h.entry(Wrote, int64(offset), int64(size)), func(fd int) error { //nolint:gosec // the kernel's are not negative
		return unix.Fallocate(fd, mode, int64(offset), int64(size)) //nolint:gosec // as above
	})
}

// Read reads what is on the disk now.
func (h *handle) Read(_ context.Context, into []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	n, err := unix.Pread(int(h.file.Fd()), into, offset)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(into[:n]), 0
}

// Flush is close(2) of one of several descriptors: nothing waits here.
func (h *handle) Flush(context.Context) syscall.Errno { return 0 }

// Fsync is done at once: the storage is another machine, and loses nothing when a host does. The kernel's own writing is not what is tested.
func (h *handle) Fsync(context.Context, uint32) syscall.Errno { return 0 }

// Getattr returns size, owner and times.
func (h *handle) Getattr(_ context.Context, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(h.file.Fd()), &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return 0
}

// Lseek finds data and holes.
func (h *handle) Lseek(_ context.Context, offset uint64, whence uint32) (uint64, syscall.Errno) {
	at, err := unix.Seek(int(h.file.Fd()), int64(offset), int(whence)) //nolint:gosec // the kernel's are not negative
	return uint64(at), fs.ToErrno(err)                                 //nolint:gosec // as above
}

// Release is the end of the last descriptor, and of the locks with it. Nobody hears of it while the host is cut off.
func (h *handle) Release(context.Context) syscall.Errno {
	m := h.mount
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.locked && !h.lost && m.trouble.cut() && m.expire != nil {
		h.released = true
		return 0
	}
	m.drop(h)
	return 0
}

// Getlk asks for a lock that stands in the way, of another mount or of this one.
func (h *handle) Getlk(_ context.Context, _ uint64, want *fuse.FileLock, _ uint32, out *fuse.FileLock) syscall.Errno {
	var l syscall.Flock_t
	want.ToFlockT(&l)
	l.Pid = 0 // as the kernel demands of these locks
	err := syscall.FcntlFlock(h.file.Fd(), unix.F_OFD_GETLK, &l)
	l.Pid = 0 // the one who holds it is nobody that the asker could know
	out.FromFlockT(&l)
	return fs.ToErrno(err)
}

// Setlk takes or gives back a lock. A handle has one owner of locks, which is so with open file descriptions' (QEMU's); flock(2) is not for images.
func (h *handle) Setlk(_ context.Context, _ uint64, want *fuse.FileLock, flags uint32) syscall.Errno {
	if flags&fuse.FUSE_LK_FLOCK != 0 {
		return syscall.ENOTSUP
	}
	var l syscall.Flock_t
	want.ToFlockT(&l)
	l.Pid = 0 // as above
	m := h.mount
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.lost {
		return syscall.EIO // as an NFS client has it: the file must be opened anew
	}
	err := syscall.FcntlFlock(h.file.Fd(), unix.F_OFD_SETLK, &l)
	if err == nil && l.Type != syscall.F_UNLCK {
		h.locked = true
	}
	return fs.ToErrno(err)
}

// Setlkw would wait for a lock; nobody here does.
func (h *handle) Setlkw(context.Context, uint64, *fuse.FileLock, uint32) syscall.Errno {
	return syscall.ENOTSUP
}

// unlock takes all locks of the handle.
func (h *handle) unlock() {
	_ = syscall.FcntlFlock(h.file.Fd(), unix.F_OFD_SETLK, &syscall.Flock_t{Type: syscall.F_UNLCK}) // cannot fail on an open file
}
