package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/godwit-vm/godwit/internal/sim"
)

// describe names the commit that is run.
func describe() (string, error) {
	commit, err := exec.CommandContext(context.Background(), "git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").Output()
	if err != nil {
		return "", fmt.Errorf("git describe: %w", err)
	}
	return strings.TrimSpace(string(commit)), nil
}

// write writes a run down.
func write(file, commit string, b sim.BlockRun) error {
	r := sim.NewRecord(b)
	r.Commit, r.Command, r.Go = commit, "make sim-record", runtime.Version()
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// checked runs one block in a hundred again.
func checked(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var r sim.Record
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	n, err := r.Check(100)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	fmt.Printf("sim: %d of %d seeds of %s run again, every hash is the same\n", n, r.Seeds, file)
	return nil
}
