//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// loadModules loads the kernel modules in dir in the order of their names, which the builder numbers by dependency. A module that does
// not load is an error in the result, and the next is tried.
func loadModules(dir string) []error {
	files, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, file := range files {
		if err := loadModule(filepath.Join(dir, file.Name())); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // only read
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("module %s: %w", filepath.Base(path), err)
	}
	return nil
}
