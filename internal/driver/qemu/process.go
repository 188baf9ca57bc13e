package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Bounds of what QEMU may write to its log. Some of its messages can be caused by the guest as often as it likes.
const (
	LogBytesMax  = 1 << 20 // beyond it Usage empties the log
	logTailBytes = 4096    // what of it goes into errors
	logTailLines = 5
)

// killTimeMax bounds how long the kernel may take to end a killed QEMU: seconds for one with much memory.
const killTimeMax = 20 * time.Second

// endingTimeMax bounds the wait for the end of a QEMU that has closed its monitor.
const endingTimeMax = 2 * time.Second

// Process is one QEMU. Start and Adopt return it with a goroutine that waits for its end and, if QEMU is our child, reaps it;
// Release or Cleanup end that. An adopted QEMU is reaped by whoever inherited it: init, or the nearest subreaper, which has
// to do so. All methods may be called by many goroutines, but none but Done and Exit after Release.
type Process struct {
	record   record
	dir      RunDir
	user     *User
	noCgroup string
	pidfd    *os.File
	cmd      *exec.Cmd // nil when adopted: then somebody else reaps it
	done     chan struct{}
	watching sync.WaitGroup

	mu      sync.Mutex
	exit    Exit
	monitor *qmp.Conn
}

// Exit is how a QEMU ended.
type Exit struct {
	Known  bool           // false: it was not our child, so only its end is known
	Code   int            // exit code, when no signal ended it
	Signal syscall.Signal // 0: none
	Stderr string         // its last lines
}

// String says it in one line.
func (e Exit) String() string {
	how := "qemu has ended"
	switch {
	case e.Known && e.Signal != 0:
		how = fmt.Sprintf("qemu was killed by %v", e.Signal)
	case e.Known:
		how = fmt.Sprintf("qemu has exited with code %d", e.Code)
	}
	if e.Stderr != "" {
		how += ": " + oneLine(e.Stderr)
	}
	return how
}

// PID returns the process id.
func (p *Process) PID() int { return p.record.PID }

// Dir returns the run directory.
func (p *Process) Dir() RunDir { return p.dir }

// Cgroup returns the directory of QEMU's own cgroup, "" and the reason when it has none.
func (p *Process) Cgroup() (dir, why string) { return p.record.Cgroup, p.noCgroup }

// User returns who QEMU runs as, nil for whoever we are.
func (p *Process) User() *User { return p.user }

// QMP returns the connection to the monitor. It is nil only after an Adopt that returned an error with the process.
func (p *Process) QMP() *qmp.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.monitor
}

// Done is closed when QEMU has ended. It stays open when the process is released.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit returns how QEMU ended; it is meaningful once Done is closed.
func (p *Process) Exit() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Wait returns when QEMU has ended, or with ctx's error.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.Exit(), nil
	case <-ctx.Done():
		return Exit{}, fault.Wrap("wait for", p.object(), ctx.Err())
	}
}

// Redial replaces the connection to the monitor, after it was lost or when Adopt found it silent.
func (p *Process) Redial(ctx context.Context) error {
	if old := p.QMP(); old != nil {
		old.Close() // QEMU serves one client at a time
	}
	conn, err := p.dial(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.monitor = conn
	return nil
}

// dial connects to the monitor, and stops waiting when QEMU ends.
func (p *Process) dial(ctx context.Context) (*qmp.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	})
	conn, err := qmp.Dial(ctx, p.dir.Monitor())
	waited := ctx.Err() != nil
	cancel()
	watcher.Wait()
	if err == nil {
		return conn, nil
	}
	if !waited {
		// The socket of a QEMU that ends is closed a moment before the process is gone.
		moment, cancel := context.WithTimeout(context.WithoutCancel(ctx), endingTimeMax)
		defer cancel()
		_, _ = p.Wait(moment) // looked at below
	}
	select {
	case <-p.done:
		return nil, fault.New(fault.Unavailable, "%s", p.Exit())
	default:
		return nil, err
	}
}

// watch waits for the end of QEMU. A pidfd becomes readable when its process has ended, child or not (pidfd_open(2)).
func (p *Process) watch() {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	ended := false
	err = raw.Read(func(fd uintptr) bool {
		ended = pidfdEnded(int(fd))
		return ended
	})
	if err != nil || !ended {
		return // released
	}
	exit := Exit{}
	if p.cmd != nil {
		_ = p.cmd.Wait() // the state below says all that its error would
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			exit.Known = true
			if ws.Signaled() {
				exit.Signal = ws.Signal()
			} else {
				exit.Code = ws.ExitStatus()
			}
		}
	}
	exit.Stderr = tail(p.dir.Log())
	p.mu.Lock()
	p.exit = exit
	p.mu.Unlock()
	close(p.done)
}

// pidfdEnded reports whether the process of fd has ended, also when nobody has reaped it yet.
func pidfdEnded(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// openPidfd returns a file whose readability the runtime's poller can wait for, so that waiting costs no thread.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), nil
}

// Quit asks QEMU to end, which flushes and closes its disks, and waits for that. When ctx ends first QEMU may still be
// there: Kill it then.
func (p *Process) Quit(ctx context.Context) error {
	conn := p.QMP()
	if conn == nil {
		return fault.Wrap("quit", p.object(), fault.New(fault.Unavailable, "its monitor does not answer"))
	}
	err := conn.Quit(ctx)
	// QEMU may be gone before its answer is out: only the end of the process counts.
	if _, waitErr := p.Wait(ctx); waitErr != nil {
		if err == nil {
			err = waitErr
		}
		return fault.Wrap("quit", p.object(), err)
	}
	return nil
}

// Kill ends QEMU at once and returns when the kernel says that it and everything in its cgroup has ended. It does not depend on
// QEMU's help. Error: fault.Unavailable when a process does not end in time, because it hangs in the kernel (storage that is gone).
func (p *Process) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeMax)
	defer cancel()
	if raw, err := p.pidfd.SyscallConn(); err == nil {
		// An error means that it has ended, or that the pidfd was released; the wait below tells.
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
	if dir := p.record.Cgroup; dir != "" && cgroupPopulated(dir) {
		_ = killCgroup(dir) // an older kernel has no such file; the check below tells
	}
	if _, err := p.Wait(ctx); err != nil {
		return fault.Wrap("kill", p.object(), fault.New(fault.Unavailable, "process %d does not end: %w", p.PID(), err))
	}
	if dir := p.record.Cgroup; dir != "" && cgroupPopulated(dir) {
		return fault.Wrap("kill", p.object(), fault.New(fault.Unavailable, "its cgroup %s still has processes", dir))
	}
	return nil
}

// Release lets go of QEMU without ending it, so that another agent can Adopt it. Only an agent that ends should do so: a
// released child that ends is not reaped by us.
func (p *Process) Release() {
	if conn := p.QMP(); conn != nil {
		conn.Close()
	}
	_ = p.pidfd.Close() // wakes watch; nothing was written to it
	p.watching.Wait()
}

// Cleanup removes the run directory and the cgroup of a QEMU that has ended. Error: fault.Conflict while it runs.
func (p *Process) Cleanup() error {
	select {
	case <-p.done:
	default:
		return fault.Wrap("clean up", p.object(), fault.New(fault.Conflict, "process %d still runs", p.PID()))
	}
	p.Release()
	if err := os.RemoveAll(string(p.dir)); err != nil {
		return fault.Wrap("clean up", p.object(), fault.New(fault.Internal, "%w", err))
	}
	return fault.Wrap("clean up", p.object(), removeCgroup(p.record.Cgroup))
}

// Usage returns what QEMU has taken from the host so far. Error: fault.NotFound when it has ended.
func (p *Process) Usage() (inventory.Usage, error) {
	if err := trimLog(p.dir.Log()); err != nil {
		return inventory.Usage{}, fault.Wrap("usage of", p.object(), err)
	}
	var usage inventory.Usage
	proc, err := procfs.NewProc(p.PID())
	if err == nil {
		var stat procfs.ProcStat
		stat, err = proc.Stat()
		usage.CPU = time.Duration(stat.CPUTime() * float64(time.Second))
		usage.Resident = inventory.Bytes(stat.ResidentMemory())
		if err == nil && stat.Starttime != p.record.StartTime {
			err = os.ErrProcessDone
		}
	}
	if err != nil {
		return inventory.Usage{}, fault.Wrap("usage of", p.object(), fault.New(fault.NotFound, "%w", err))
	}
	return usage, nil
}

// object names the process in errors.
func (p *Process) object() string { return "vm " + p.record.Name }

// trimLog empties a log that has grown too long. QEMU appends, so it goes on at the new end.
func trimLog(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() <= LogBytesMax {
		return nil //nolint:nilerr // no log, nothing to trim
	}
	if err := os.Truncate(path, 0); err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	return nil
}

// tail returns the last lines of a log without their time stamps.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // read only
	if info, err := f.Stat(); err == nil && info.Size() > logTailBytes {
		if _, err := f.Seek(-logTailBytes, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, logTailBytes))
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	lines = lines[max(0, len(lines)-logTailLines):]
	for i, line := range lines {
		// -msg timestamp=on puts "2026-11-22T04:00:00.000000Z " in front.
		if stamp, rest, ok := bytes.Cut(line, []byte("Z ")); ok && len(stamp) == len("2026-11-22T04:00:00.000000") {
			lines[i] = rest
		}
	}
	return string(bytes.Join(lines, []byte("\n")))
}

// oneLine joins lines for an error message.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }
