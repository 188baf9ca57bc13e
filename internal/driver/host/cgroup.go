package host

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// CgroupMount returns where the cgroup v2 hierarchy is mounted, "" when it is not.
func CgroupMount() string {
	mounts, err := procfs.GetMounts()
	if err != nil {
		return ""
	}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			return m.MountPoint
		}
	}
	return ""
}

// Cgroup is what the kernel says of one cgroup and everything below it (cgroup-v2.rst, cgroup.events).
type Cgroup struct {
	Name      string
	Populated bool  // a process is in it that has not ended
	Frozen    bool  // none of its processes executes anything
	Err       error // why the kernel did not say: then the worst is assumed, Populated and not Frozen
}

// Cgroups are the cgroups right below one, a VM each. They come and go as others make and remove them; the one above may, too. Its methods
// read what the kernel says right then, and may be called by many goroutines.
type Cgroups struct {
	dir string
}

// OpenCgroups returns the cgroups below the one with that path, like "godwit/host-1", which need not be there yet.
func OpenCgroups(path string) (*Cgroups, error) {
	mount := CgroupMount()
	if mount == "" {
		return nil, fault.New(fault.Unavailable, "no cgroup v2 hierarchy is mounted: mount one, VMs are stopped by it")
	}
	dir := filepath.Join(mount, path)
	if !strings.HasPrefix(dir, mount+"/") {
		return nil, fault.New(fault.Invalid, "cgroup %q is outside the hierarchy", path)
	}
	return &Cgroups{dir}, nil
}

// List appends the cgroups that are there to into, ordered by name. An error means that they could not be listed, and that nothing can be
// concluded from what is missing.
func (c *Cgroups) List(into []Cgroup) ([]Cgroup, error) {
	dir, err := os.Open(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return into, nil
	}
	if err != nil {
		return into, fault.New(fault.Internal, "cgroups: %w", err)
	}
	defer func() { _ = dir.Close() }() // read only
	names, err := dir.Readdirnames(-1)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return into, nil // removed since
	}
	if err != nil {
		return into, fault.New(fault.Internal, "cgroups: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if g, there := look(int(dir.Fd()), name); there {
			into = append(into, g)
		}
	}
	return into, nil
}

// eventsMax is more than the kernel writes into cgroup.events.
const eventsMax = 256

// look reads the state of one cgroup; what is none, or was removed since, is not there.
func look(dir int, name string) (g Cgroup, there bool) {
	fd, err := unix.Openat(dir, name+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || gone(err) {
		return g, false // one of the cgroup's own files
	}
	var buffer [eventsMax]byte
	n := 0
	if err == nil {
		n, err = unix.Read(fd, buffer[:])
		_ = unix.Close(fd) // read only
	}
	if gone(err) {
		return g, false
	}
	g = Cgroup{Name: name, Populated: true}
	text := buffer[:max(n, 0)]
	switch {
	case err != nil:
		g.Err = fault.New(fault.Internal, "cgroup %s: %w", name, err)
	case !bytes.Contains(text, []byte("populated ")) || !bytes.Contains(text, []byte("frozen ")):
		g.Err = fault.New(fault.Unavailable, "cgroup %s: the kernel does not say whether it is frozen: that takes Linux 5.2", name)
	default:
		g.Populated, g.Frozen = bytes.Contains(text, []byte("populated 1")), bytes.Contains(text, []byte("frozen 1"))
	}
	return g, true
}

// gone reports whether the error says that a cgroup was removed: before its file was opened, or since.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// Freeze has the kernel stop everything in the cgroup. It returns before that is done: Frozen says when. A cgroup that is gone needs none.
func (c *Cgroups) Freeze(name string) error { return c.write(name, "cgroup.freeze", "1") }

// Thaw lets what Freeze stopped run on.
func (c *Cgroups) Thaw(name string) error { return c.write(name, "cgroup.freeze", "0") }

// Kill has the kernel kill everything in the cgroup, frozen or not. It returns before that is done: Populated says when, and a process that waits
// in the kernel for a disk may take its time. A kernel before 5.14 cannot do it at once; there every process gets its signal.
func (c *Cgroups) Kill(name string) error {
	if _, err := os.Stat(filepath.Join(c.dir, name, "cgroup.kill")); err == nil {
		return c.write(name, "cgroup.kill", "1")
	}
	return c.killEach(name)
}

func (c *Cgroups) write(name, file, text string) error {
	path, err := c.file(name, file)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // without O_CREATE: cgroups make their own files
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if gone(err) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Internal, "cgroup %s: %w", name, err)
	}
	return nil
}

// file returns the path of a cgroup's file. A name is one element: nothing outside is ever touched.
func (c *Cgroups) file(name, file string) (string, error) {
	if name == "" || name != filepath.Base(name) || name == ".." || name == "." {
		return "", fault.New(fault.Invalid, "cgroup %q: that is no name", name)
	}
	return filepath.Join(c.dir, name, file), nil
}

// killEach sends SIGKILL to every process of the cgroup and those below it, by pidfd: the process is looked for in the cgroup once more
// after its pidfd was opened, so that nobody dies who has got the number of one that ended. A process that is forked meanwhile is met by the next Kill.
func (c *Cgroups) killEach(name string) error {
	path, err := c.file(name, "")
	if err != nil {
		return err
	}
	var bad []error
	err = filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return ignoreGone(err)
		}
		pids, err := members(at)
		if err != nil {
			return ignoreGone(err)
		}
		for _, pid := range pids {
			bad = append(bad, killMember(at, pid))
		}
		return nil
	})
	return errors.Join(ignoreGone(err), errors.Join(bad...))
}

func killMember(cgroup string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Internal, "kill process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	if pids, err := members(cgroup); err != nil || !slices.Contains(pids, pid) {
		return ignoreGone(err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fault.New(fault.Internal, "kill process %d: %w", pid, err)
	}
	return nil
}

// members lists the processes right in a cgroup.
func members(cgroup string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil, fault.New(fault.Internal, "cgroup: %w", err)
	}
	var pids []int
	for word := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 { // 0: of another process namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}
