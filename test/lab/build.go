package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// buildMax bounds the build of godwit on a machine whose build cache is empty.
const buildMax = 10 * time.Minute

// Build builds godwit from the sources that the tests are of, with these flags of go build, and writes it to path.
func Build(path string, flags ...string) error {
	ctx, done := context.WithTimeout(context.Background(), buildMax)
	defer done()
	args := slices.Concat([]string{"build"}, flags, []string{"-o", path, "github.com/godwit-vm/godwit/cmd/godwit"})
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// builds begins the names of the folders that hold binaries under test; the process that made one stands behind it.
const builds = "godwit-test-"

// BuildFolder makes a folder for what a run of tests builds, which removes it at its end. Those of runs that were killed are removed here.
func BuildFolder() (string, error) {
	found, err := filepath.Glob(filepath.Join(os.TempDir(), builds+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range found {
		maker, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), builds), "-")
		pid, err := strconv.Atoi(maker)
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // what stays is tried again
		}
	}
	return os.MkdirTemp("", fmt.Sprintf("%s%d-", builds, os.Getpid()))
}

// BuildCommit builds godwit, without the race detector, which would be another machine's speed, into a folder that remove removes, and names the commit. When
// a run is to be kept, it must be one that somebody can build again.
func BuildCommit(kept bool, flags ...string) (binary, commit string, remove func(), err error) {
	dir, err := BuildFolder()
	if err != nil {
		return "", "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) } // only scratch, and the next run takes what stays
	commit, err = Commit()
	if err != nil && kept {
		remove()
		return "", "", nil, fmt.Errorf("no run is kept: %w", err)
	}
	binary = filepath.Join(dir, "godwit")
	if err := Build(binary, flags...); err != nil {
		remove()
		return "", "", nil, err
	}
	return binary, commit, remove, nil
}

// Commit names the commit that Build builds. An error says why nobody could build the same again. The kept runs themselves are no part of what is built.
func Commit() (string, error) {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(context.Background(), "git", args...).Output()
		return strings.TrimSpace(string(out)), err
	}
	version, err := git("describe", "--always", "--exclude=*")
	if err != nil {
		return "", fmt.Errorf("git describe: %w", err)
	}
	changes, err := git("status", "--porcelain", "--", ":(top)", ":(top,exclude)test/results")
	if err != nil {
		return "", fmt.Errorf("git status: %w", err)
	}
	if changes != "" {
		return version + "-dirty", fmt.Errorf("commit %s was changed: commit or revert what git status shows", version)
	}
	return version, nil
}
