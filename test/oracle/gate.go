package oracle

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// gate is the file system of a mount behind its trouble: every request that would reach the storage passes by there first. What ends things (forget,
// release) always passes.
type gate struct {
	fuse.RawFileSystem
	mount *Mount
}

// then does the request when it may pass.
func (g *gate) then(canceled <-chan struct{}, do func() fuse.Status) fuse.Status {
	if errno := g.mount.pass(canceled); errno != 0 {
		return fuse.Status(errno)
	}
	return do()
}

// grow is then for a request that takes room.
func (g *gate) grow(canceled <-chan struct{}, do func() fuse.Status) fuse.Status {
	if g.mount.Now() == Full {
		return fuse.Status(syscall.ENOSPC)
	}
	return g.then(canceled, do)
}

func (g *gate) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Lookup(c, h, name, out) })
}

func (g *gate) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.GetAttr(c, in, out) })
}

func (g *gate) Statx(c <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Statx(c, in, out) })
}

func (g *gate) SetAttr(c <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.SetAttr(c, in, out) })
}

func (g *gate) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return g.grow(c, func() fuse.Status { return g.RawFileSystem.Mkdir(c, in, name, out) })
}

func (g *gate) Unlink(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Unlink(c, h, name) })
}

func (g *gate) Rmdir(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Rmdir(c, h, name) })
}

func (g *gate) Rename(c <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Rename(c, in, from, to) })
}

func (g *gate) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return g.grow(c, func() fuse.Status { return g.RawFileSystem.Link(c, in, name, out) })
}

func (g *gate) Symlink(c <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	return g.grow(c, func() fuse.Status { return g.RawFileSystem.Symlink(c, h, to, name, out) })
}

// Tmpfile makes a file without a name, which nothing here needs; the caller makes one with a name then.
func (g *gate) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.ENOTSUP
}

func (g *gate) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return g.grow(c, func() fuse.Status { return g.RawFileSystem.Create(c, in, name, out) })
}

func (g *gate) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Open(c, in, out) })
}

func (g *gate) Read(c <-chan struct{}, in *fuse.ReadIn, into []byte) (result fuse.ReadResult, status fuse.Status) {
	status = g.then(c, func() (s fuse.Status) {
		result, s = g.RawFileSystem.Read(c, in, into)
		return s
	})
	return result, status
}

func (g *gate) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, status fuse.Status) {
	status = g.grow(c, func() (s fuse.Status) {
		written, s = g.RawFileSystem.Write(c, in, data)
		return s
	})
	return written, status
}

// Writev leaves writing to Write.
func (g *gate) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// CopyFileRange leaves copying to read and write, which are seen.
func (g *gate) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (g *gate) Fsync(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.Fsync(c, in) })
}

func (g *gate) Fallocate(c <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return g.grow(c, func() fuse.Status { return g.RawFileSystem.Fallocate(c, in) })
}

func (g *gate) GetLk(c <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.GetLk(c, in, out) })
}

func (g *gate) SetLk(c <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.SetLk(c, in) })
}

func (g *gate) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.OpenDir(c, in, out) })
}

func (g *gate) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.ReadDir(c, in, out) })
}

func (g *gate) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.ReadDirPlus(c, in, out) })
}

func (g *gate) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK } // as handle.Fsync

func (g *gate) StatFs(c <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return g.then(c, func() fuse.Status { return g.RawFileSystem.StatFs(c, h, out) })
}
