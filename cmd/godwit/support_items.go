package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/godwit-vm/godwit/internal/driver/bundle"
	"github.com/godwit-vm/godwit/internal/driver/peer"
)

// commands are programs of the machine whose output helps. One that is not installed is a line in the index.
var commands = map[string][]string{
	"log/journal.txt":         {"journalctl", "--no-pager", "--output", "short-iso-precise", "--unit", "godwit.service", "--lines", "50000"},
	"log/kernel.txt":          {"dmesg", "--time-format", "iso"},
	"system/unit.txt":         {"systemctl", "--no-pager", "--full", "status", "godwit.service"},
	"system/processes.txt":    {"ps", "-eo", "pid,ppid,user,stat,start,time,rss,args"},
	"system/disk-space.txt":   {"df", "-h"},
	"network/addresses.txt":   {"ip", "-details", "address"},
	"network/routes.txt":      {"ip", "route", "show", "table", "all"},
	"network/bridge-link.txt": {"bridge", "-details", "link"},
	"network/bridge-fdb.txt":  {"bridge", "fdb"},
	"network/bridge-vlan.txt": {"bridge", "vlan"},
	"network/sockets.txt":     {"ss", "--listening", "--tcp", "--udp", "--numeric", "--processes"},
}

// kernel are files of the machine that help.
var kernel = map[string]string{
	"system/os-release.txt": "/etc/os-release", "system/kernel.txt": "/proc/version", "system/boot.txt": "/proc/cmdline",
	"system/mounts.txt": "/proc/self/mountinfo", "system/cgroups.txt": "/proc/cgroups", "system/own-cgroup.txt": "/proc/self/cgroup",
	"system/memory.txt": "/proc/meminfo", "system/cpus.txt": "/proc/cpuinfo", "system/load.txt": "/proc/loadavg",
	"system/modules.txt": "/proc/modules", "system/boot-id.txt": "/proc/sys/kernel/random/boot_id", "system/limits.txt": "/proc/self/limits",
	"system/pressure-cpu.txt": "/proc/pressure/cpu", "system/pressure-io.txt": "/proc/pressure/io", "system/pressure-memory.txt": "/proc/pressure/memory",
}

// items lists what the bundle collects, what tells most first.
func (b *supportBundle) items() []bundle.Item {
	data, run := b.set.Data, b.set.Run
	all := []bundle.Item{
		{Name: "versions.txt", Collect: b.versions},
		{Name: "doctor.json", Collect: b.doctor},
		{Name: "config/effective.json", Collect: func(_ context.Context, w io.Writer) error { return writeJSON(w, b.set.Values()) }},
		{Name: "config/problems.txt", Collect: func(_ context.Context, w io.Writer) error {
			if b.broken == nil {
				return nil
			}
			_, err := fmt.Fprintln(w, b.broken)
			return err
		}},
		{Name: "data/host.json", Collect: file(filepath.Join(data, "host.json"))},
		{Name: "data/version", Collect: file(filepath.Join(data, "version"))},
		{Name: "data/pki/ca.crt", Collect: file(filepath.Join(data, "pki", peer.CACertificateFile))},
		{Name: "data/pki/host.crt", Collect: file(filepath.Join(data, "pki", peer.CertificateFile))},
		{Name: "data/tree.txt", Collect: tree(data)},
		{Name: "run/tree.txt", Collect: tree(run)},
		{Name: "store.json", Collect: b.records},
		{Name: "qemu/processes.txt", Collect: qemus},
	}
	if path, err := b.cmd.Flags().GetString("config"); err == nil {
		all = append(all, bundle.Item{Name: "config/config.toml", Collect: file(path)})
	}
	for i, path := range b.logs {
		all = append(all, bundle.Item{Name: fmt.Sprintf("log/%d-%s", i+1, filepath.Base(path)), Collect: file(path)})
	}
	for _, pattern := range []string{"vms/*/qemu.log", "vms/*/pid", "vms/*/command*", "journal/*", "switch/switch.json"} {
		found, _ := filepath.Glob(filepath.Join(run, pattern)) // the pattern is well formed
		for _, path := range found {
			name, err := filepath.Rel(run, path)
			if err == nil {
				all = append(all, bundle.Item{Name: "run/" + name, Collect: file(path)})
			}
		}
	}
	for _, name := range sorted(commands) {
		all = append(all, bundle.Item{Name: name, Collect: command(commands[name]...)})
	}
	for _, name := range sorted(kernel) {
		all = append(all, bundle.Item{Name: name, Collect: file(kernel[name])})
	}
	return all
}

func sorted[V any](m map[string]V) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// writeJSON writes what is no message of the API.
func writeJSON(w io.Writer, v any) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(v)
}

// file copies the last part of a regular file, or what a file of /proc says.
func file(path string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no file", path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // only read
		if over := info.Size() - bundle.ItemMax; over > 0 {
			if _, err := f.Seek(over, io.SeekStart); err != nil {
				return err
			}
		}
		_, err = io.Copy(w, io.LimitReader(f, bundle.ItemMax)) // it may grow meanwhile
		return err
	}
}

// treeMax is how many files a listing shows.
const treeMax = 20000

// tree lists a folder without reading its files.
func tree(dir string) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		n := 0
		return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if n++; err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			if n > treeMax {
				return fmt.Errorf("more than %d files", treeMax)
			}
			info, err := d.Info()
			if err != nil {
				return nil //nolint:nilerr // gone meanwhile
			}
			_, err = fmt.Fprintf(w, "%v %10d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format("2006-01-02T15:04:05.000Z"), path)
			return err
		})
	}
}

// command runs a program of the machine; its errors are part of the output.
func command(args ...string) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		path, err := exec.LookPath(args[0])
		for _, dir := range []string{"/usr/sbin", "/sbin"} { // where the PATH of those who are not root has nothing
			if err != nil {
				path, err = exec.LookPath(filepath.Join(dir, args[0]))
			}
		}
		if err != nil {
			return fmt.Errorf("%s is not installed", args[0])
		}
		cmd := exec.CommandContext(ctx, path, args[1:]...)
		cmd.Stdout, cmd.Stderr = w, w
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		return cmd.Run()
	}
}

func (b *supportBundle) versions(ctx context.Context, w io.Writer) error {
	if _, err := fmt.Fprintf(w, "godwit %s, %s, %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH); err != nil {
		return err
	}
	found, _ := filepath.Glob("/usr/bin/qemu-system-*") // the pattern is well formed
	if b.set.Binary != "" {
		found = append(found, b.set.Binary)
	}
	for _, binary := range append(found, "qemu-img") {
		if _, err := fmt.Fprintf(w, "\n%s:\n", binary); err != nil {
			return err
		}
		if err := command(binary, "--version")(ctx, w); err != nil {
			_, _ = fmt.Fprintf(w, "%v\n", err) // the other versions are worth having
		}
	}
	return nil
}

// qemus lists the command lines of every QEMU of this machine.
func qemus(_ context.Context, w io.Writer) error {
	all, err := procfs.AllProcs()
	if err != nil {
		return err
	}
	for _, p := range all {
		args, err := p.CmdLine()
		if err != nil || len(args) == 0 || !strings.Contains(filepath.Base(args[0]), "qemu") {
			continue
		}
		if _, err := fmt.Fprintf(w, "%d %s\n\n", p.PID, strings.Join(args, " ")); err != nil {
			return err
		}
	}
	return nil
}

func (b *supportBundle) doctor(ctx context.Context, w io.Writer) error {
	answer, err := diagnose(ctx, b.cmd, "")
	if err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(answer)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// records dumps the store, which may be on another host.
func (b *supportBundle) records(ctx context.Context, w io.Writer) error {
	s, err := b.state.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // read only
	text, err := s.Dump(ctx)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
