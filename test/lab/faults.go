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
type Wire struct{ fd, pid int }

// wireBytesMin tells a migration's stream from the calls between agents: none of those carries so much. An agent's connection to the store does, in
// time, but not over the agents' port.
const (
	wireBytesMin = 256 << 10
	agentPort    = 7443
)

// MemoryStream finds the connection over which the process, an agent, receives or sends a VM's memory: of those between agents the one
// that has carried most so far. It takes the file descriptor out of that process (pidfd_getfd(2)), which needs root or CAP_SYS_PTRACE.
// Error: ENOTCONN when there is none, or none any more.
func MemoryStream(pid int) (*Wire, error) {
	var best *Wire
	var most uint64
	if err := sockets(pid, func(w *Wire) error {
		if carried := w.Carried(); carried > most && carried >= wireBytesMin && w.betweenAgents() {
			_ = best.Close() // only looked at
			best, most = w, carried
			return nil
		}
		return w.Close()
	}); err != nil {
		return nil, errors.Join(err, best.Close())
	}
	if best == nil {
		return nil, fmt.Errorf("process %d has no connection to another agent that carried %d bytes: %w", pid, wireBytesMin, unix.ENOTCONN)
	}
	return best, nil
}

// sockets calls see with each socket of a process, which see closes or keeps. A process that has ended has none.
func sockets(pid int, see func(*Wire) error) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }() // nothing was written to it
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	all, err := os.ReadDir(folder)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	for _, e := range all {
		if to, err := os.Readlink(filepath.Join(folder, e.Name())); err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		own, err := unix.PidfdGetfd(pidfd, fd, 0)
		if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
			continue // closed since
		}
		if err != nil {
			return fmt.Errorf("descriptor %d of process %d: %w", fd, pid, err)
		}
		if err := see(&Wire{own, pid}); err != nil {
			return err
		}
	}
	return nil
}

// Carried returns the bytes that went over the connection, 0 for one that is no TCP connection open both ways.
func (w *Wire) Carried() uint64 {
	info, err := unix.GetsockoptTCPInfo(w.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.State != unix.BPF_TCP_ESTABLISHED {
		return 0
	}
	return max(info.Bytes_acked, info.Bytes_received)
}

// betweenAgents reports whether the connection is one between agents, by its ports.
func (w *Wire) betweenAgents() bool {
	near, _ := unix.Getsockname(w.fd)
	far, _ := unix.Getpeername(w.fd) // one that ended meanwhile has none
	for _, end := range []unix.Sockaddr{near, far} {
		if end, ok := end.(*unix.SockaddrInet4); ok && end.Port == agentPort {
			return true
		}
	}
	return false
}

// Cut ends the connection in both directions, as a broken link would for those who use it, and lets go of it.
func (w *Wire) Cut() error {
	return errors.Join(unix.Shutdown(w.fd, unix.SHUT_RDWR), w.Close())
}

// Deaf keeps from the connection's process whatever the other end sends it, but not that the other end has received: so what goes the other way goes on. It lets
// go of the connection, and lift mends it, unless its process has closed it or ended.
func (w *Wire) Deaf() (lift func() error, err error) {
	return w.filter([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 12}, // the length of the TCP header, in words, in the upper half
		{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 2},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x3c},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X, Jf: 1}, // nothing but a header?
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K},
	})
}

// Dead keeps everything from the connection's process, acknowledgements too, as a network that loses all packets does. It lets go of the connection, and lift
// mends it, unless its process has closed it or ended.
func (w *Wire) Dead() (lift func() error, err error) {
	return w.filter([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}})
}

// filter puts a filter on what the connection receives.
func (w *Wire) filter(program []unix.SockFilter) (lift func() error, err error) {
	defer func() { err = errors.Join(err, w.Close()) }() // as long as we have it, its process cannot close it
	cookie, err := unix.GetsockoptUint64(w.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptSockFprog(w.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil { //nolint:gosec // a few
		return nil, fmt.Errorf("filter on a connection: %w", err)
	}
	pid := w.pid
	return func() error {
		return sockets(pid, func(w *Wire) error {
			if now, err := unix.GetsockoptUint64(w.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil || now != cookie {
				return w.Close()
			}
			return errors.Join(unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0), w.Close())
		})
	}, nil
}

// Unheard returns how many segments the process has sent over the connection and the other end has not acknowledged.
func (w *Wire) Unheard() (uint32, error) {
	info, err := unix.GetsockoptTCPInfo(w.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, err
	}
	return info.Unacked, nil
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
