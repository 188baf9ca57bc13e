package build

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// AgentWanted are the modules that the guest with qemu-guest-agent needs beside Wanted: disks, whose file systems the agent freezes.
var AgentWanted = []string{"virtio_blk"}

// agentFirst numbers the modules of Agent behind all those of Initramfs.
const agentFirst = 90

// Agent writes the files below dir, the real qemu-guest-agent with its libraries as scripts/setup unpacks it, as an archive of its own to w. The
// kernel unpacks archives that follow each other in one file (Documentation/driver-api/early-userspace/buffer-format.rst), so it goes
// behind that of Initramfs. The guest's init then starts the agent; /sbin/shutdown, which the agent calls, is init again.
func Agent(w io.Writer, dir, modulesDir string) error {
	modules, err := Modules(modulesDir, slices.Concat(Wanted, AgentWanted))
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	base, err := Modules(modulesDir, Wanted)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	known := map[string]bool{}
	for _, m := range base {
		known[m.Name] = true
	}
	entries := []entry{
		{name: "run", mode: typeDir | 0o755},
		{name: "mnt", mode: typeDir | 0o755},
		{name: "etc", mode: typeDir | 0o755},
		{name: "etc/os-release", mode: typeFile | 0o644, content: []byte("ID=godwit-guest\nNAME=\"Godwit guest\"\nPRETTY_NAME=\"Godwit's Linux guest\"\n")},
		{name: "sbin", mode: typeDir | 0o755},
		{name: "sbin/shutdown", mode: typeLink | 0o777, content: []byte("/init")},
	}
	number := agentFirst
	for _, m := range modules {
		if known[m.Name] {
			continue
		}
		content, err := os.ReadFile(m.Path)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		name := fmt.Sprintf("modules/%02d-%s.ko", number, m.Name)
		number++
		entries = append(entries, entry{name: name, mode: typeFile | 0o644, content: content})
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error { // in the order of names
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." || name == "version" {
			return err
		}
		if e.IsDir() {
			entries = append(entries, entry{name: name, mode: typeDir | 0o755})
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		entries = append(entries, entry{name: name, mode: typeFile | 0o755, content: content})
		return nil
	})
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := writeArchive(w, entries); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}
