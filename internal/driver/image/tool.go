package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// DefaultTool is where Debian and most others put qemu-img.
const DefaultTool = "/usr/bin/qemu-img"

// The bounds of one run of qemu-img. Making and reading headers takes milliseconds, a storage that hangs takes for ever; copying may
// take as long as the slowest storage that one would still want to use.
const (
	timeMin   = 30 * time.Second
	rateMin   = 4 * inventory.MiB // bytes in a second
	memoryMax = 4 * inventory.GiB // of address space; a conversion of a large image took 0.4 GiB
	niceness  = 10                // VMs come first
)

// Owner is the unprivileged user that QEMU runs as: it owns the images, and qemu-img runs as it too. A nil *Owner stands for whoever
// we are.
type Owner struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
}

// String returns the name for messages.
func (o *Owner) String() string {
	if o == nil {
		return "this user"
	}
	return o.Name
}

// Progress is told how far a copy is, in bytes, and what it does. It is called some times a second at most.
type Progress func(done, total inventory.Bytes, doing string)

func (p Progress) tell(done, total inventory.Bytes, doing string) {
	if p != nil {
		p(done, total, doing)
	}
}

// run is one run of qemu-img.
type run struct {
	as       *Owner
	size     inventory.Bytes // how much may have to be copied: the time bound grows with it
	progress Progress
	doing    string
}

// tool runs qemu-img and returns what it prints. The process ends with ctx, with the time bound and with the agent.
func (r run) tool(ctx context.Context, args ...string) ([]byte, error) {
	bound := timeMin + time.Duration(r.size/rateMin)*time.Second
	within, done := context.WithTimeout(ctx, bound)
	defer done()
	cmd := exec.CommandContext(within, DefaultTool, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "MALLOC_ARENA_MAX=2"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if r.as != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: r.as.UID, Gid: r.as.GID, Groups: r.as.Groups}
	}
	var stderr, stdout bytes.Buffer
	cmd.Stderr = &limited{&stderr, outputMax}
	cmd.Stdout = &limited{&stdout, outputMax}
	if r.progress != nil {
		cmd.Stdout = &percent{run: r}
	}
	// The parent-death signal comes when the thread ends that made the process (prctl(2)): this one stays for it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err == nil {
		restrain(cmd.Process.Pid)
		err = cmd.Wait()
	}
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "%w: run make setup, or install qemu-utils", err)
	case ctx.Err() != nil:
		return nil, fault.New(fault.Canceled, "%w", ctx.Err())
	case within.Err() != nil:
		return nil, fault.New(fault.Unavailable, "the storage is too slow or does not answer: qemu-img had not ended after %v", bound)
	}
	return nil, r.explain(err, stderr.String(), args)
}

// explain gives what qemu-img said a kind and a way out, in one line.
func (r run) explain(err error, stderr string, args []string) error {
	said := strings.ReplaceAll(strings.TrimSpace(stderr), "\n", "; ")
	for _, arg := range args { // the caller names the file
		said = strings.ReplaceAll(said, arg+": ", "")
	}
	said = strings.TrimPrefix(cmp.Or(said, err.Error()), "qemu-img: ")
	switch {
	case strings.Contains(strings.ToLower(said), "no space left"), strings.Contains(said, "Disk quota exceeded"):
		return fault.New(fault.NoResources, "%s: free some space on the datastore", said)
	case strings.Contains(said, "Failed to get"): // "Failed to get \"write\" lock; Is another process using the image [...]?"
		return fault.New(fault.Conflict, "another process uses it: stop the VM that has it")
	case strings.Contains(said, "Permission denied"):
		return fault.New(fault.Denied, "%s: it is opened as %s, which must be able to read it", said, r.as)
	}
	return fault.New(fault.Invalid, "%s", said)
}

// restrain takes from a process what qemu-img does not need. A process that has ended already needs none of it.
func restrain(pid int) {
	_ = unix.Prlimit(pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: uint64(memoryMax), Max: uint64(memoryMax)}, nil)
	_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_ = unix.Setpriority(unix.PRIO_PROCESS, pid, niceness)
}

// outputMax bounds what is kept of the output of qemu-img.
const outputMax = 1 << 20

// limited keeps the first bytes and forgets the rest.
type limited struct {
	to   *bytes.Buffer
	left int
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	l.to.Write(p[:n])
	return len(p), nil
}

// percent reads what qemu-img convert -p prints: "    (12.34/100%)\r", again and again.
type percent struct {
	run  run
	line []byte
	last string
}

var _ io.Writer = (*percent)(nil)

// Write implements io.Writer.
func (p *percent) Write(text []byte) (int, error) {
	for _, b := range text {
		if b != '\r' && b != '\n' {
			if len(p.line) < 64 {
				p.line = append(p.line, b)
			}
			continue
		}
		said, _, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(p.line)), "("), "/100%")
		p.line = p.line[:0]
		share, err := strconv.ParseFloat(said, 64)
		if !ok || err != nil || share < 0 || share > 100 || said == p.last {
			continue
		}
		p.last = said
		p.run.progress(inventory.Bytes(share/100*float64(p.run.size)), p.run.size, p.run.doing)
	}
	return len(text), nil
}
