package gate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/test/lab"
)

var (
	corrupt = flag.Bool("corrupt", false, "flip one bit of the guest's memory in TestTenMigrations, which must then fail")
	rewrite = flag.Bool("rewrite", false, "write testdata anew; review the difference as prose")
)

// binary is godwit as these tests built it for the hosts, and commandLine the same without the race detector.
var binary, commandLine string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := lab.BuildFolder()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gate:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // the next run takes what stays
	binary, commandLine = filepath.Join(dir, "godwit-host"), filepath.Join(dir, "godwit")
	if err := errors.Join(lab.Build(binary, raceBuild...), lab.Build(commandLine)); err != nil {
		fmt.Fprintln(os.Stderr, "gate:", err)
		return 1
	}
	return m.Run()
}

// stepMax bounds a single step of a test: a command, a question to the guest, the end of a migration.
const stepMax = time.Minute

// step returns a context for one step.
func step(t *testing.T) context.Context {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), stepMax)
	t.Cleanup(done)
	return ctx
}

// startCluster starts a cluster that ends with the test. A data race or a panic in any of its processes fails the test, and so does
// whatever the cluster leaves behind.
func startCluster(t *testing.T, o lab.Options) *lab.Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run make test as root")
	}
	o.Binary, o.CLI = binary, commandLine
	if o.Cache == "" {
		cache, err := guest.Cache()
		if err != nil {
			t.Fatal(err)
		}
		o.Cache = filepath.Join(cache, "probes")
	}
	ctx, done := context.WithTimeout(t.Context(), 2*stepMax)
	defer done()
	c, err := lab.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range slices.Backward(c.Hosts) { // the first, with the store, last: the others end sooner so
			if err := h.Down(); err != nil {
				t.Error(err)
			}
		}
		readLogs(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left := c.Processes(); len(left) > 0 {
			t.Errorf("processes %v outlive their cluster", left)
		}
	})
	return c
}

// logTail is how much of each host's log a failed test shows.
const logTail = 24 << 10

// readLogs fails the test for what no log may have, and shows the logs of a failed test.
func readLogs(t *testing.T, c *lab.Cluster) {
	t.Helper()
	for _, h := range c.Hosts {
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			t.Error(err)
			continue
		}
		if bad := lab.Alarm(text); bad != "" {
			t.Errorf("%s: %.6000s", h.Name, bad)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", h.Name, text[max(0, len(text)-logTail):])
		}
	}
}
