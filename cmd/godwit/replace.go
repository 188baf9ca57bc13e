package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// replace writes a file, whole or not at all: what it holds is on the disk before it has its name, and readable by no more than mode says.
func replace(path string, text []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // nobody else can read it
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // err says what matters
	}
	return err
}
