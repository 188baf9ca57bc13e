package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// QEMUs lists the QEMU processes that the host has for the VM with that id; one is the rule, and there is none on any
// host but the VM's and, while it migrates, the target.
func (h *Host) QEMUs(vm string) []int { return named(h.VMDir(vm)) }

// VMDir is the run directory of a VM's QEMU on the host.
func (h *Host) VMDir(vm string) string { return filepath.Join(h.Run, "vms", vm) }

// WaitOther waits until the host answers with another process in the role than the given one, which was killed, and
// returns its process id.
func (h *Host) WaitOther(ctx context.Context, role string, old int) (pid int, err error) {
	err = Until(ctx, upMax, func() error {
		var err error
		if pid, err = h.PID(ctx, role); err != nil {
			return err
		}
		if pid == old {
			return fmt.Errorf("%s %s is still process %d", h.Name, role, old)
		}
		return nil
	})
	return pid, err
}

// Wire is one TCP connection of somebody else's process, to be cut.
type Wire struct{ fd int }

// wireBytesMin tells a migration's stream from the calls between agents: none of those carries so much.
const wireBytesMin = 256 << 10

// MemoryStream finds the connection over which the process, an agent, receives or sends a VM's memory: the one that has
// carried most so far. It takes the file descriptor out of that process (pidfd_getfd(2)), which needs root or CAP_SYS_PTRACE.
func MemoryStream(pid int) (*Wire, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	targets, err := proc.FileDescriptorTargets()
	if err != nil {
		return nil, err
	}
	descriptors, err := proc.FileDescriptors()
	if err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }() // nothing was written to it
	var best *Wire
	var most uint64
	for i, fd := range descriptors {
		if i >= len(targets) || !strings.HasPrefix(targets[i], "socket:") {
			continue
		}
		own, err := unix.PidfdGetfd(pidfd, int(fd), 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed since
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("descriptor %d of process %d: %w", fd, pid, err), best.Close())
		}
		w := &Wire{own}
		if carried := w.carried(); carried > most && carried >= wireBytesMin {
			_ = best.Close() // only looked at
			best, most = w, carried
			continue
		}
		_ = w.Close() // likewise
	}
	if best == nil {
		return nil, fmt.Errorf("process %d has no connection that carried %d bytes", pid, wireBytesMin)
	}
	return best, nil
}

// carried returns the bytes that went over the connection, 0 for one that is no connected TCP socket.
func (w *Wire) carried() uint64 {
	info, err := unix.GetsockoptTCPInfo(w.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return max(info.Bytes_acked, info.Bytes_received)
}

// Cut ends the connection in both directions, as a broken link would for those who use it, and lets go of it.
func (w *Wire) Cut() error {
	return errors.Join(unix.Shutdown(w.fd, unix.SHUT_RDWR), w.Close())
}

// Close lets go of the connection, which goes on. A nil Wire has nothing to let go of.
func (w *Wire) Close() error {
	if w == nil {
		return nil
	}
	return unix.Close(w.fd)
}

// Leftovers lists what a host still has of a VM that is not there: processes, files, switch ports, a cgroup. The VM's journal
// stays on purpose, as the other end of its last migration may ask what it says.
func (h *Host) Leftovers(ctx context.Context, vm string) []string {
	var left []string
	add := func(format string, args ...any) { left = append(left, h.Name+": "+fmt.Sprintf(format, args...)) }
	for _, pid := range h.QEMUs(vm) {
		add("process %d", pid)
	}
	patterns := []string{h.VMDir(vm), filepath.Join(h.Run, "ports", vm+"-*")}
	if group := filepath.Join(h.cgroup(), vm); group != vm {
		if _, err := os.Stat(group); !errors.Is(err, os.ErrNotExist) {
			add("%s (%v)", group, err)
		}
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			add("%v", err)
		}
		for _, path := range found {
			add("%s", path)
		}
	}
	taps, err := h.Taps(vm)
	if err != nil {
		add("%v", err)
	}
	for _, name := range taps {
		add("tap %s", name)
	}
	ports, err := h.Ports(ctx)
	if err != nil {
		add("%v", err)
	}
	for _, p := range ports {
		if strings.HasPrefix(p.ID, vm) {
			add("switch port %s, %s", p.ID, p.Mode)
		}
	}
	return left
}

// Descriptors counts what the process has open.
func Descriptors(pid int) (int, error) {
	all, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	return len(all), err
}

// dialMax bounds the connection to an agent's socket.
const dialMax = 5 * time.Second

// dialLocal connects to the agent's unix socket.
func (h *Host) dialLocal(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialMax}
	return dialer.DialContext(ctx, "unix", h.Socket)
}
