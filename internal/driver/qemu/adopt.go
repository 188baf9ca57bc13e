package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/godwit-vm/godwit/internal/fault"
)

// record says which process a run directory belongs to. Start writes it, Adopt reads it.
type record struct {
	Name      string `json:"name"` // of the VM, for messages
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks since boot (proc(5), stat field 22): with BootID it tells a reused PID
	BootID    string `json:"boot_id"`
	Binary    string `json:"binary"`
	Cgroup    string `json:"cgroup,omitempty"`
}

// write completes the record with the facts of its process and saves it, whole or not at all.
func (r *record) write(dir RunDir) error {
	var err error
	if r.StartTime, err = startTime(r.PID); err != nil {
		return fault.New(fault.Unavailable, "process %d: %w", r.PID, err)
	}
	if r.BootID, err = bootID(); err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	return writeFile(dir.record(), append(text, '\n'), 0o600)
}

// writeFile replaces path by a file with the text, whole or not at all. It does not sync: what it is used for dies with the machine or can be made again.
func writeFile(path string, text []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error above is the one that counts
		return fault.New(fault.Internal, "%w", err)
	}
	return nil
}

// startTime returns when a process started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := proc.Stat()
	return stat.Starttime, err
}

// bootID returns the kernel's name for this boot.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

// Adopt takes over the QEMU of a run directory that an earlier agent started. It reads nothing but the directory and the
// kernel's process list, and changes nothing.
//
// Errors: fault.NotFound when no QEMU runs there any more (Remove then cleans up). fault.Unavailable when it runs but its monitor
// stays silent until ctx ends, because it hangs or another agent holds it: then the Process is returned as well, to be killed or redialled.
func Adopt(ctx context.Context, dir RunDir) (*Process, error) {
	r, err := readRecord(dir)
	if err != nil {
		return nil, fault.Wrap("adopt", string(dir), err)
	}
	p := &Process{dir: dir, record: r, done: make(chan struct{})}
	if r.Cgroup == "" {
		p.noCgroup = "it was started without one"
	}
	if p.pidfd, err = openPidfd(r.PID); err == nil {
		// Only now does the PID stand still: look whether it is the process that was recorded.
		err = r.verify()
		if err != nil {
			_ = p.pidfd.Close() // nothing was written to it
		}
	}
	if err != nil {
		return nil, fault.Wrap("adopt", p.object(), fault.New(fault.NotFound, "%w", err))
	}
	p.user = userOf(string(dir))
	p.watching.Go(p.watch)
	if err := p.Redial(ctx); err != nil {
		return p, fault.Wrap("adopt", p.object(), err)
	}
	return p, nil
}

// Remove clears away what a QEMU that has ended left: its run directory and cgroup. It is for directories that Adopt
// found nobody in. Error: fault.Conflict when a QEMU runs there after all.
func Remove(dir RunDir) error {
	if pid, ok := runningIn(dir); ok {
		return fault.Wrap("remove", string(dir), fault.New(fault.Conflict, "process %d runs there", pid))
	}
	r, err := readRecord(dir)
	if err := os.RemoveAll(string(dir)); err != nil {
		return fault.Wrap("remove", string(dir), fault.New(fault.Internal, "%w", err))
	}
	if err != nil {
		return nil //nolint:nilerr // no record: there was no process and so no cgroup
	}
	return fault.Wrap("remove", string(dir), removeCgroup(r.Cgroup))
}

// runningIn returns the process that runs in the directory, if one does.
func runningIn(dir RunDir) (pid int, ok bool) {
	r, err := readRecord(dir)
	if err != nil {
		return 0, false
	}
	return r.PID, r.verify() == nil
}

// verify returns fault.NotFound unless the recorded process still runs.
func (r record) verify() error {
	boot, err := bootID()
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	if boot != r.BootID {
		return fault.New(fault.NotFound, "the host has booted since")
	}
	proc, err := procfs.NewProc(r.PID)
	if err != nil {
		return fault.New(fault.NotFound, "process %d has ended", r.PID)
	}
	stat, err := proc.Stat()
	switch {
	case err != nil || stat.State == "Z" || stat.State == "X":
		return fault.New(fault.NotFound, "process %d has ended", r.PID)
	case stat.Starttime != r.StartTime:
		return fault.New(fault.NotFound, "process %d is another one by now", r.PID)
	}
	return nil
}

// readRecord reads the record, or rebuilds it when the agent was killed after it started QEMU and before it wrote it.
func readRecord(dir RunDir) (record, error) {
	text, err := os.ReadFile(dir.record())
	if errors.Is(err, fs.ErrNotExist) {
		return findOrphan(dir)
	}
	if err != nil {
		return record{}, fault.New(fault.Internal, "%w", err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.PID <= 0 {
		return record{}, fault.New(fault.Internal, "%s is no record of a process", dir.record())
	}
	return r, nil
}

// findOrphan looks for the process whose command line names the directory's serial socket.
func findOrphan(dir RunDir) (record, error) {
	none := fault.New(fault.NotFound, "no qemu runs there")
	if _, err := os.Stat(string(dir)); err != nil {
		return record{}, none
	}
	procs, err := procfs.AllProcs()
	if err != nil {
		return record{}, fault.New(fault.Internal, "%w", err)
	}
	serial := "socket,id=serial,path=" + escape(dir.Serial()) + ",server=on,wait=off"
	for _, proc := range procs {
		args, err := proc.CmdLine()
		if err != nil || !slices.Contains(args, serial) {
			continue
		}
		r := record{PID: proc.PID, Binary: args[0], Cgroup: cgroupOf(proc.PID)}
		if i := slices.Index(args, "-name"); i >= 0 && i+1 < len(args) {
			r.Name, _, _ = strings.Cut(strings.TrimPrefix(args[i+1], "guest="), ",")
		}
		if r.StartTime, err = startTime(proc.PID); err != nil {
			continue // it has just ended
		}
		if r.BootID, err = bootID(); err != nil {
			return record{}, fault.New(fault.Internal, "%w", err)
		}
		return r, nil
	}
	return record{}, none
}

// cgroupOf returns the directory of a process's own cgroup: its unified one, if nobody else is in it. Else it was started without one.
func cgroupOf(pid int) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	mount := cgroupMount()
	if err != nil || mount == "" {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok || path == "/" {
			continue
		}
		dir := filepath.Join(mount, path)
		members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil && string(bytes.TrimSpace(members)) == strconv.Itoa(pid) {
			return dir
		}
	}
	return ""
}
