package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/test/lab"
)

// Machine is where it was measured.
type Machine struct {
	OS          string `json:"goos"`
	Arch        string `json:"goarch"`
	CPUs        int    `json:"cpus"`
	CPU         string `json:"cpu"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
	QEMU        string `json:"qemu"`
	Accelerator string `json:"accelerator"`
	Nice        int    `json:"nice"`   // of all processes of both; below 0: before whatever else ran
	Commit      string `json:"commit"` // that godwit was built from
	Date        string `json:"date"`
}

func machine(ctx context.Context, binary string, a qemu.Abilities) Machine {
	m := Machine{
		OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(), QEMU: a.Version,
		Accelerator: a.Accelerator, Commit: versionOf(ctx, binary), Date: time.Now().UTC().Format(time.RFC3339),
	}
	if n, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0); err == nil {
		m.Nice = 20 - n // as the system call has it (getpriority(2))
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
}

// versionOf returns what the binary says of itself: the commit it was built from, if make build built it. The tree beside it may have
// moved on.
func versionOf(ctx context.Context, binary string) string {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// load returns the machine's load average over a minute, 0 when it is not known.
func load() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	n, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return n
}

// Footprint is the memory of one of Godwit's processes at the end of a series.
type Footprint struct {
	Host     string  `json:"host"`
	Role     string  `json:"role"`
	Resident float64 `json:"resident_mib"`
	Peak     float64 `json:"peak_mib"` // of its life so far; 0: not known
}

// weigh notes what each of Godwit's processes takes now, in place of what was noted before if it takes more.
func (r *Report) weigh(ctx context.Context, c *lab.Cluster) error {
	for _, h := range c.Hosts {
		info := &godwitv1.GetHostResponse{}
		if err := h.Read(ctx, info, "host", "info"); err != nil {
			return err
		}
		for _, p := range info.GetProcesses() {
			r.note(Footprint{
				Host: h.Name, Role: p.GetRole(), Resident: float64(p.GetResident()) / (1 << 20), Peak: peak(int(p.GetPid())),
			})
		}
	}
	return nil
}

func (r *Report) note(f Footprint) {
	for i, old := range r.Footprints {
		if old.Host == f.Host && old.Role == f.Role {
			r.Footprints[i].Resident, r.Footprints[i].Peak = max(old.Resident, f.Resident), max(old.Peak, f.Peak)
			return
		}
	}
	r.Footprints = append(r.Footprints, f)
}

// peak returns the most memory that a process ever had, in MiB.
func peak(pid int) float64 {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	status, err := proc.NewStatus()
	if err != nil {
		return 0
	}
	return float64(status.VmHWM) / (1 << 20)
}

// timeStarts returns how long vm start of the tiny guest takes, the command's own start included, in milliseconds.
func timeStarts(ctx context.Context, c *lab.Cluster, times int) ([]float64, error) {
	const name, rom = "bench-tiny", "bench-tiny.rom"
	if err := os.WriteFile(filepath.Join(c.Datastore, rom), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		return nil, err
	}
	h := c.Hosts[0]
	if _, err := h.Godwit(ctx, "vm", "create", name, "--memory", "64M", "--firmware", rom); err != nil {
		return nil, err
	}
	var all []float64
	for range times {
		clock := startClock()
		if _, err := h.Godwit(ctx, "vm", "start", name); err != nil {
			return nil, err
		}
		all = append(all, clock.now())
		vm, err := h.VM(ctx, name)
		if err != nil {
			return nil, err
		}
		if state := vm.GetStatus().GetState(); state != "running" {
			return nil, fmt.Errorf("%s is %s after its start", name, state)
		}
		if _, err := h.Godwit(ctx, "vm", "stop", name, "--force"); err != nil {
			return nil, err
		}
	}
	_, err := h.Godwit(ctx, "vm", "destroy", name)
	return all, err
}
