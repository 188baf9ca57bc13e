package qemu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Running is a QEMU that runs on this host, as its run directory names it.
type Running struct {
	ID   string // of the VM: the name of the run directory
	Name string // of the VM
	PID  int
}

// ListRunning returns the QEMUs that run in the run directories below dir, by their records and the kernel's process list alone: no agent need
// be there. A folder that does not exist has none.
func ListRunning(dir string) ([]Running, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Denied, "run directory: %w", err)
	}
	var all []Running
	for _, e := range entries {
		r, err := readRecord(RunDir(filepath.Join(dir, e.Name())))
		if err == nil && r.verify() == nil {
			all = append(all, Running{e.Name(), r.Name, r.PID})
		}
	}
	return all, nil
}
