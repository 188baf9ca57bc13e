package oracle

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Trouble is how a mount behaves.
type Trouble string

// The troubles of a mount.
const (
	Fine     Trouble = "fine"
	Stalled  Trouble = "stalled"  // requests wait, and who waits cannot be killed before they are answered
	Killable Trouble = "killable" // requests wait, and who is killed gives up
	Failing  Trouble = "failing"  // EIO
	Gone     Trouble = "gone"     // the host was reset: EIO for what waits, which is never done
	Full     Trouble = "full"     // ENOSPC for what would take room: a new name, a write
)

// cut says that the storage hears nothing of the host.
func (t Trouble) cut() bool { return t != Fine && t != Full }

// Mount is how one host sees the folder. Its methods may be called by many goroutines.
type Mount struct {
	Host string
	At   string

	oracle *Oracle
	server *fuse.Server

	mu      sync.Mutex
	trouble Trouble
	delay   time.Duration
	changed chan struct{} // closed and replaced when trouble changes
	open    map[*handle]bool
	expire  *time.Timer // takes the locks of a host that is cut off
	cuts    int         // how often it was
	waiting int         // requests
}

// Mount makes the folder appear at a path, which is made, for a host. Close of the oracle takes it away.
func (o *Oracle) Mount(host, at string) (*Mount, error) {
	if err := os.MkdirAll(at, 0o755); err != nil { //nolint:gosec // QEMU's user passes through
		return nil, err
	}
	m := &Mount{Host: host, At: at, oracle: o, trouble: Fine, changed: make(chan struct{}), open: map[*handle]bool{}}
	data := &fs.LoopbackRoot{Path: o.folder}
	root := &node{LoopbackNode: fs.LoopbackNode{RootData: data}, mount: m}
	data.RootNode = root
	options := &fs.Options{NullPermissions: true, MountOptions: fuse.MountOptions{
		AllowOther: true, Options: []string{"default_permissions"}, FsName: "oracle-" + host, Name: "oracle",
		EnableLocks: true, DirectMountStrict: true, DisableXAttrs: true, MaxBackground: 64,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH, // or the kernel would write without us
	}}
	server, err := serve(&gate{fs.NewNodeFS(root, options), m}, at, &options.MountOptions)
	if err != nil {
		return nil, fmt.Errorf("mount oracle at %s (needs root and /dev/fuse): %w", at, err)
	}
	m.server = server
	go server.Serve() // ends when the mount does
	if err := server.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount oracle at %s: %w", at, err)
	}
	o.mu.Lock()
	o.mounts = append(o.mounts, m)
	o.mu.Unlock()
	return m, nil
}

// serve mounts without letting a child inherit the file system's own descriptor, as the library would: a QEMU that has it keeps the mount alive when we
// are dead, and waits in the kernel for its own answer.
func serve(what fuse.RawFileSystem, at string, o *fuse.MountOptions) (*fuse.Server, error) {
	syscall.ForkLock.RLock() // no child is made before the descriptor is marked
	defer syscall.ForkLock.RUnlock()
	server, err := fuse.NewServer(what, at, o)
	if err != nil {
		return nil, err
	}
	const mine = "/proc/self/fd"
	all, err := os.ReadDir(mine)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if to, err := os.Readlink(filepath.Join(mine, e.Name())); err != nil || to != "/dev/fuse" {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		syscall.CloseOnExec(fd)
	}
	return server, nil
}

// Set puts the mount into trouble, or out of it. What waits goes on as the new trouble says. When it returns nothing that Gone or Failing is to keep
// from the disk gets there any more.
func (m *Mount) Set(t Trouble) {
	m.set(t)
	m.oracle.Note(m.Host, "storage is "+string(t)) // what is under way holds the oracle's lock: nothing of it is done after this
}

// Heal takes the mount out of trouble, unless its host was reset meanwhile: a machine that is off hears nothing until it boots.
func (m *Mount) Heal() {
	m.mu.Lock()
	gone := m.trouble == Gone
	if !gone {
		m.change(Fine)
	}
	m.mu.Unlock()
	if !gone {
		m.oracle.Note(m.Host, "storage is "+string(Fine))
	}
}

func (m *Mount) set(t Trouble) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.change(t)
}

// refuses says whether nothing of the host gets to the disk, whatever was let through before.
func (m *Mount) refuses() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trouble == Gone || m.trouble == Failing
}

// change is set; m.mu is held.
func (m *Mount) change(t Trouble) {
	was := m.trouble
	m.trouble = t
	close(m.changed)
	m.changed = make(chan struct{})
	switch life := m.oracle.options.LockLife; {
	case !t.cut():
		if m.expire != nil {
			m.expire.Stop()
		}
		m.expire = nil
		for h := range m.open {
			if h.released { // its process ended while nobody heard of it
				m.drop(h)
			}
		}
	case !was.cut() && life > 0:
		m.cuts++
		cut := m.cuts
		m.expire = time.AfterFunc(life, func() { m.loseLocks(cut) })
	}
}

// Now returns the trouble that the mount is in.
func (m *Mount) Now() Trouble {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trouble
}

// Slow makes each request take that much longer; 0 ends it.
func (m *Mount) Slow(by time.Duration) {
	m.oracle.Note(m.Host, fmt.Sprintf("storage is slower by %v", by))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = by
}

// Waiting returns how many requests wait for the storage.
func (m *Mount) Waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting
}

// wait counts a request that waits, or one that does no more.
func (m *Mount) wait(more int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting += more
}

// loseLocks takes all locks of the host, unless it was heard of since it was cut off for the n-th time.
func (m *Mount) loseLocks(n int) {
	m.mu.Lock()
	if m.expire == nil || m.cuts != n {
		m.mu.Unlock()
		return
	}
	m.expire = nil
	lost := 0
	for h := range m.open {
		if h.locked {
			lost++
			h.unlock()
			h.lost = true
		}
		if h.released {
			m.drop(h)
		}
	}
	m.mu.Unlock()
	if lost > 0 {
		m.oracle.Note(m.Host, fmt.Sprintf("locks of %d files are lost", lost))
	}
}

// drop ends a handle for good; m.mu is held.
func (m *Mount) drop(h *handle) {
	delete(m.open, h)
	_ = h.file.Close() // what was written went to the kernel at once
}

// pass lets a request through, or says how it ends. canceled is closed when who waits for it was interrupted.
func (m *Mount) pass(canceled <-chan struct{}) syscall.Errno {
	m.mu.Lock()
	delay := m.delay
	m.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	for {
		m.mu.Lock()
		trouble, changed := m.trouble, m.changed
		m.mu.Unlock()
		switch trouble {
		case Fine, Full:
			return 0
		case Failing, Gone:
			return syscall.EIO
		case Killable:
			m.wait(1)
			select {
			case <-changed:
				m.wait(-1)
			case <-canceled:
				m.wait(-1)
				return syscall.EINTR
			}
		case Stalled:
			m.wait(1)
			<-changed
			m.wait(-1)
		}
	}
}

// close ends the mount; the kernel lets go of it when its last user does.
func (m *Mount) close() error {
	m.mu.Lock()
	m.trouble, m.delay = Gone, 0
	close(m.changed)
	m.changed = make(chan struct{})
	if m.expire != nil {
		m.expire.Stop()
	}
	m.expire = nil
	m.mu.Unlock()
	if err := syscall.Unmount(m.At, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", m.At, err)
	}
	return nil
}
