package datadir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// migrations brings a folder from the version that is the index to the next. Each is idempotent.
var migrations = map[int]func(dir string) error{
	1: private,
}

// private is the step to version 2. Version 1 left it to the umask and to whoever made the folder who may look into it, and a
// write that was cut off left its half-written file. Version 2 promises that only the owner can look into the folder, that
// nobody else can read a key, and that no half-written file is there.
func private(dir string) error {
	var all []error
	for _, d := range []string{dir, filepath.Join(dir, "pki")} {
		if err := os.Chmod(d, 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) { //nolint:gosec // a folder has to be passed
			all = append(all, err)
		}
		halves, err := filepath.Glob(filepath.Join(d, "*.new"))
		all = append(all, err)
		for _, half := range halves {
			if err := os.Remove(half); err != nil && !errors.Is(err, fs.ErrNotExist) {
				all = append(all, err)
			}
		}
		keys, err := filepath.Glob(filepath.Join(d, "*.key"))
		all = append(all, err)
		for _, key := range keys {
			all = append(all, os.Chmod(key, 0o600))
		}
	}
	return errors.Join(all...)
}
