// Package build makes the Linux guest's initramfs: our init, compiled statically, and the kernel modules it needs, in a cpio archive. It needs
// no root and nothing but the Go tool, and the same sources, kernel and Go version give the same bytes.
//
// It does not fetch the kernel (scripts/setup does) and starts nothing; package guest finds and keeps its results.
package build

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Wanted are the modules that the guest needs on Godwit's virtual machines, by their kernel names; what they depend on comes by itself.
var Wanted = []string{
	"virtio_pci", "virtio_net", "virtio_console", // network, heartbeat and control
	"virtio_blk", "isofs", // disks, and the cloud-init seed
	"button", "evdev", // the power button
	"pvpanic_pci", // tells QEMU of a panic
}

// Module is a kernel module to load.
type Module struct {
	Name string // the kernel's name: with _, never with -
	Path string // its file
}

// builtinFile, in a kernel's modules folder, lists what is built into the kernel and needs no module.
const builtinFile = "modules.builtin"

// Modules returns the wanted modules under dir (a kernel's modules folder, with its modules.builtin) and all they depend on, each after what
// it depends on; what is built into the kernel is left out. The order is the same for the same input. The kernel says what depends on what in each module's .modinfo section, so no depmod is needed.
func Modules(dir string, wanted []string) ([]Module, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".ko") {
			paths[moduleName(path)] = path
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var ordered []Module
	state := map[string]int{} // 1 on the way, 2 done
	builtin, err := os.ReadFile(filepath.Join(dir, builtinFile))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(builtin)) {
		state[moduleName(strings.TrimSpace(line))] = 2
	}
	var add func(name, neededBy string) error
	add = func(name, neededBy string) error {
		switch state[name] {
		case 1:
			return fmt.Errorf("module %s depends on itself", name)
		case 2:
			return nil
		}
		state[name] = 1
		path, found := paths[name]
		if !found {
			return fmt.Errorf("module %s, needed by %s, is not in %s", name, neededBy, dir)
		}
		depends, err := dependencies(path)
		if err != nil {
			return err
		}
		for _, other := range depends {
			if err := add(other, name); err != nil {
				return err
			}
		}
		state[name] = 2
		ordered = append(ordered, Module{Name: name, Path: path})
		return nil
	}
	for _, name := range wanted {
		if err := add(name, "the guest"); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// moduleName is the kernel's name of the module in a file.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// dependencies reads the field depends= of a module's .modinfo section: zero-terminated strings, names separated by commas.
func dependencies(path string) ([]string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s has no .modinfo section; is it a kernel module?", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	var names []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			names = strings.Split(strings.ReplaceAll(string(list), "-", "_"), ",")
		}
	}
	slices.Sort(names)
	return names, nil
}
