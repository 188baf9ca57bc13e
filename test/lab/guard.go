package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/driver/host"
)

// guardVariable makes the binary that links this package a guard of the folder it names, instead of what it is.
const guardVariable = "GODWIT_LAB_GUARD"

// init turns a re-executed test or demo binary into the guard before its main begins.
func init() {
	if dir := os.Getenv(guardVariable); dir != "" {
		_, _ = io.Copy(io.Discard, os.Stdin) // returns when the one who is guarded has ended
		if err := sweep(dir); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "lab guard:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// guard is a process that sweeps a folder when the end of a pipe that only we hold is closed, by whatever death.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startGuard(dir string) (*guard, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self) //nolint:noctx // it outlives us, that is its purpose
	cmd.Env = append(os.Environ(), guardVariable+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal for us reaches it
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &guard{cmd, pipe}, cmd.Start()
}

// dismiss ends the guard; it finds nothing left to sweep.
func (g *guard) dismiss() {
	_ = g.pipe.Close()
	_ = g.cmd.Wait() // it has said on stderr what it had to say
}

// sweepMax bounds how long killed processes may take to disappear.
const sweepMax = 20 * time.Second

// sweep kills every process that names the folder on its command line, but this one, until none is left, and removes the
// folder and the cgroups of its hosts' VMs.
func sweep(dir string) error {
	end := time.Now().Add(sweepMax)
	killed := map[int]bool{}
	for {
		left := named(dir)
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is what is wanted
			killed[pid] = true
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v do not end", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for pid := range killed {
		reap(pid)
	}
	clearCgroups(dir)
	return errors.Join(removeNamespaces(filepath.Base(dir)), unmount(dir), os.RemoveAll(dir))
}

// unmount takes away the file systems that a test has mounted in the folder.
func unmount(dir string) error {
	mounts, err := procfs.GetMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.MountPoint, dir+"/") {
			if err := syscall.Unmount(m.MountPoint, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m.MountPoint, err)
			}
		}
	}
	return nil
}

// reap takes note of the end of a process that became our child when its parent ended: not every machine has somebody else to do
// it. One that is nobody of ours is left alone.
func reap(pid int) {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); got == pid || err != nil {
			return
		}
	}
}

// clearCgroups removes the cgroups of the hosts whose run directories are in the folder. No process is in them any more.
func clearCgroups(dir string) {
	mount := host.CgroupMount()
	if mount == "" {
		return
	}
	all, name := filepath.Split(filepath.Join(mount, warden.PlainCgroup(dir)))
	found, err := os.ReadDir(all)
	if err != nil {
		return // there are none
	}
	for _, entry := range found {
		if strings.HasPrefix(entry.Name(), name+"-") {
			removeCgroup(filepath.Join(all, entry.Name()))
		}
	}
	_ = os.Remove(all) // others may have VMs there
}

// removeCgroup removes a cgroup and those in it. The kernel empties one a little after its last process has ended.
func removeCgroup(group string) {
	found, err := os.ReadDir(group)
	if err != nil {
		return // it is gone
	}
	for _, entry := range found {
		if entry.IsDir() {
			removeCgroup(filepath.Join(group, entry.Name()))
		}
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := os.Remove(group); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}

// named lists the processes with the folder on their command line; zombies have none.
func named(dir string) []int {
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil
	}
	var found []int
	for _, p := range procs {
		args, err := p.CmdLine()
		if err == nil && p.PID != os.Getpid() && strings.Contains(strings.Join(args, " ")+" ", dir+"/") {
			found = append(found, p.PID)
		}
	}
	return found
}

// Processes lists the processes that still have the cluster's folder on their command line.
func (c *Cluster) Processes() []int { return named(c.Dir) }
