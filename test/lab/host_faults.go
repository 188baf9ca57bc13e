package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
)

// Processes lists the host's processes, without asking anybody.
func (h *Host) Processes() []int { return named(h.Folder()) }

// Freeze stops every process of the host, as a machine stops whose virtual machine is paused; Thaw lets them go on. When it returns none of
// them does anything any more.
func (h *Host) Freeze() error {
	for {
		running := 0
		for _, pid := range h.Processes() {
			if stands(pid) {
				continue
			}
			running++
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop process %d of %s: %w", pid, h.Name, err)
			}
		}
		if running == 0 { // what was started meanwhile is stopped, too
			return nil
		}
	}
}

// stopMax bounds the wait for a stopped process to stand, on a machine on which it hardly gets a processor to stop on.
const stopMax = 10 * time.Second

// Stop stops a process and returns when it does nothing any more, which may be a while after the signal: each of its threads stops when it gets a
// processor the next time, or leaves the kernel.
func Stop(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	return Until(ctx, stopMax, func() error {
		if !stands(pid) {
			return fmt.Errorf("process %d was stopped and runs still", pid)
		}
		return nil
	})
}

// stands reports whether no thread of the process runs, or the process has ended.
func stands(pid int) bool {
	threads, err := procfs.AllThreads(pid)
	if err != nil {
		return true // ended
	}
	for _, thread := range threads {
		// One that waits in the kernel (D) stops when it leaves it.
		if stat, err := thread.Stat(); err == nil && !strings.Contains("TtZXD", stat.State) {
			return false
		}
	}
	return true
}

// Thaw lets every process of the host go on.
func (h *Host) Thaw() {
	for _, pid := range h.Processes() {
		_ = syscall.Kill(pid, syscall.SIGCONT) // one that ended meanwhile needs nothing
	}
}

// Cut keeps from now on everything from the host that goes towards it, and from the others what comes from it, as said: true cuts a
// direction, false mends it. It is the management network only, and nobody's interface goes down. It needs Options.Cables.
func (h *Host) Cut(in, out bool) error {
	number := strings.TrimPrefix(h.Name, "host-")
	return errors.Join(
		h.cluster.lan.switches.do(func() error { return swallow("mgmt-"+number, in) }),
		h.namespace.do(func() error { return swallow("mgmt", out) }),
	)
}

// swallow lets an interface drop all that it is to send, or makes it whole again.
func swallow(name string, all bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	hole := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)},
		QdiscType:  "blackhole",
	}
	if all {
		if err := netlink.QdiscReplace(hole); err != nil {
			return fmt.Errorf("cut %s: %w", name, err)
		}
		return nil
	}
	if err := netlink.QdiscDel(hole); err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EINVAL) { // it is whole
		return fmt.Errorf("mend %s: %w", name, err)
	}
	return nil
}

// Role lists the host's processes in a role, "agent", "store" or "switch", without asking anybody; "warden" is its main process.
func (h *Host) Role(name string) (found []int) {
	for _, pid := range h.Processes() {
		p, err := procfs.NewProc(pid)
		if err != nil {
			continue // ended
		}
		args, err := p.CmdLine()
		if err != nil || len(args) < 3 {
			continue
		}
		if args[1] == "role" && args[2] == name || args[1] == "run" && name == "warden" {
			found = append(found, pid)
		}
	}
	return found
}
