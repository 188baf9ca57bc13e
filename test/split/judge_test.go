package split

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/test/oracle"
)

// The story: everything that protects a VM is broken at once. Warden and agent of a host stand still, its watchdog does not count, it is cut off from the
// others and from a storage that takes its locks away and late writes all the same. The others believe in the watchdog and start the VM. Then
// the storage hears of the first host again, and two copies write. The judge must say so, or its other verdicts are worth nothing.
func TestTheJudgeSeesTwoCopies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run make test as root")
	}
	t.Parallel()
	ctx := t.Context()
	w := newWorld(0)
	w.lostPass, w.watchdogs = true, true
	if err := w.begin(ctx, 3); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}()
	h, v := w.cluster.Hosts[2], w.vms[2]
	if bad := oracle.Check(w.oracle.Log(), w.images()); bad != nil {
		t.Fatalf("before anything went wrong: %q", bad)
	}
	for _, name := range []string{"warden", "agent"} {
		pid, err := role(h, name)
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGSTOP)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := h.BreakWatchdog(); err != nil {
		t.Fatal(err)
	}
	if err := h.Cut(true, true); err != nil {
		t.Fatal(err)
	}
	w.mount(h).Set(oracle.Killable)
	wrote := func(since time.Duration, here bool) error {
		_, err := w.until(ctx, since, fencedMax, func(e oracle.Entry) bool {
			return e.Kind == oracle.Wrote && e.File == v.file && e.Number > 0 && (e.Host == h.Name) == here
		})
		return err
	}
	if err := wrote(w.oracle.Now(), false); err != nil {
		t.Fatalf("%s does not run elsewhere: %v", v.name, err)
	}
	w.mount(h).Set(oracle.Fine)
	if err := wrote(w.oracle.Now(), true); err != nil {
		t.Fatalf("the first copy does not write: %v", err)
	}
	bad := strings.Join(oracle.Check(w.oracle.Log(), w.images()), "\n")
	if !strings.Contains(bad, "generation 1 writes after generation 3 did") {
		t.Errorf("two copies wrote, and the judge says %q of\n%s", bad, strings.Join(oracle.Story(w.oracle.Log(), w.images()), "\n"))
	}
}
