package packets

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

var (
	migrationsFlag = flag.Int("migrations", 0, "how many migrations complete; 0: the short form of CI")
	abortsFlag     = flag.Int("aborts", 0, "how many are aborted, with -migrations")
	rateFlag       = flag.Int("rate", 0, "packets a second each way; 0: 10,000, in CI fewer")
	bridgeFlag     = flag.Bool("bridge", false, "on the bridge driver, which is measured and may lose packets")
	keepFlag       = flag.String("keep", "", "file to keep the result in, as JSON")
)

// godwit is the binary as these tests built it from the commit, without the race detector: that would be another machine's speed.
var godwit, commit string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := lab.BuildFolder()
	if err != nil {
		fmt.Fprintln(os.Stderr, "packets:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // only scratch
	godwit = filepath.Join(dir, "godwit")
	if commit, err = describe(); err != nil && *keepFlag != "" {
		fmt.Fprintln(os.Stderr, "packets: no result is kept:", err)
		return 1
	}
	if err := lab.Build(godwit); err != nil {
		fmt.Fprintln(os.Stderr, "packets:", err)
		return 1
	}
	return m.Run()
}

// describe names the commit that is built. An error says why nobody could build the same again. Kept results are no part of what is built.
func describe() (string, error) {
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
