package journal_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/journal"
	"github.com/godwit-vm/godwit/internal/fault"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, kind fault.Kind, err error) {
	t.Helper()
	if fault.KindOf(err) != kind {
		t.Fatalf("got %v (%v), want %v", err, fault.KindOf(err), kind)
	}
	t.Log(err)
}

func errOf(_ *journal.Journal, _ []journal.Record, err error) error { return err }

func kinds(records []journal.Record) string {
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "%s/%s ", r.Kind, r.ID)
	}
	return strings.TrimSpace(b.String())
}

func TestRecordsAreThereAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm-a.journal")
	records, err := journal.Read(path)
	must(t, err)
	if len(records) != 0 {
		t.Errorf("a journal that is not there holds %v", records)
	}
	j, records, err := journal.Open(path)
	must(t, err)
	if len(records) != 0 {
		t.Errorf("a new journal holds %v", records)
	}
	must(t, j.Append("released", "mig-1", map[string]int{"epoch": 3}))
	must(t, j.Append("throttled", "", nil))
	want(t, fault.Conflict, errOf(journal.Open(path))) // one process at a time
	must(t, j.Close())

	j, records, err = journal.Open(path)
	must(t, err)
	if kinds(records) != "released/mig-1 throttled/" || string(records[0].Data) != `{"epoch":3}` || records[0].Time.IsZero() {
		t.Errorf("got %+v", records)
	}
	must(t, j.Reset())
	must(t, j.Append("discarded", "mig-2", nil))
	must(t, j.Close())
	records, err = journal.Read(path)
	must(t, err)
	if kinds(records) != "discarded/mig-2" {
		t.Errorf("got %s", kinds(records))
	}
	must(t, journal.Remove(path))
	must(t, journal.Remove(path))
}

func TestTornLastRecordIsLeftOutAndOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm-a.journal")
	j, _, err := journal.Open(path)
	must(t, err)
	must(t, j.Append("released", "mig-1", nil))
	must(t, j.Append("resuming", "mig-1", nil))
	must(t, j.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	first := bytes.IndexByte(whole, '\n') + 1
	for cut := first; cut < len(whole); cut++ {
		must(t, os.WriteFile(path, whole[:cut], 0o600))
		j, records, err := journal.Open(path)
		must(t, err)
		if kinds(records) != "released/mig-1" {
			t.Fatalf("cut at %d: %s", cut, kinds(records))
		}
		must(t, j.Append("discarded", "mig-1", nil))
		must(t, j.Close())
		if records, err = journal.Read(path); err != nil || kinds(records) != "released/mig-1 discarded/mig-1" {
			t.Fatalf("cut at %d: %s %v", cut, kinds(records), err)
		}
	}
	must(t, os.WriteFile(path, append([]byte("{}\n"), whole...), 0o600))
	want(t, fault.Internal, errOf(journal.Open(path))) // damage that no crash makes
}

func TestJournalHasBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm-a.journal")
	j, _, err := journal.Open(path)
	must(t, err)
	want(t, fault.Internal, j.Append("big", "", strings.Repeat("x", journal.RecordMax)))
	want(t, fault.Internal, j.Append("", "", nil))
	n := 0
	for ; err == nil; n++ {
		err = j.Append("x", "", strings.Repeat("x", journal.RecordMax-200))
	}
	want(t, fault.NoResources, err)
	must(t, j.Close())
	records, err := journal.Read(path)
	must(t, err)
	if info, _ := os.Stat(path); len(records) != n-1 || info.Size() > journal.SizeMax {
		t.Errorf("%d records of %d, %d bytes", len(records), n-1, info.Size())
	}
}

// A full file system takes half a record: it is taken back, and the journal goes on when there is space again.
func TestFullDiskLosesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small tmpfs (run the tests as root): %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	path, filler := filepath.Join(dir, "vm-a.journal"), filepath.Join(dir, "filler")
	must(t, os.WriteFile(filler, make([]byte, 56<<10), 0o600)) // leaves two pages
	j, _, err := journal.Open(path)
	must(t, err)
	must(t, j.Append("released", "mig-1", strings.Repeat("a", 3000)))
	want(t, fault.NoResources, j.Append("throttled", "", strings.Repeat("x", 20_000)))
	records, err := journal.Read(path)
	must(t, err)
	if kinds(records) != "released/mig-1" {
		t.Errorf("got %s", kinds(records))
	}
	must(t, os.Remove(filler))
	must(t, j.Append("discarded", "mig-1", strings.Repeat("x", 20_000)))
	must(t, j.Close())
	if records, err = journal.Read(path); err != nil || kinds(records) != "released/mig-1 discarded/mig-1" {
		t.Errorf("got %s %v", kinds(records), err)
	}
}

// What Append returned for is there after a kill -9, at whatever moment it comes.
func TestKilledWriterKeepsItsWord(t *testing.T) {
	if path := os.Getenv("GODWIT_TEST_JOURNAL"); path != "" {
		j, _, err := journal.Open(path)
		must(t, err)
		for i := range 1000 {
			must(t, j.Append("released", fmt.Sprint(i), nil))
			_, _ = fmt.Fprintf(os.Stdout, "said %d\n", i)
		}
		return
	}
	for round := range 5 {
		path := filepath.Join(t.TempDir(), "vm-a.journal")
		child := exec.Command(os.Args[0], "-test.run=TestKilledWriterKeepsItsWord")
		child.Env = append(os.Environ(), "GODWIT_TEST_JOURNAL="+path)
		out, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		said := -1
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if n, err := fmt.Sscanf(lines.Text(), "said %d", &said); n == 1 && err == nil && said == 100*round {
				must(t, child.Process.Kill())
			}
		}
		_ = child.Wait() // killed
		_, records, err := journal.Open(path)
		must(t, err)
		if said < 100*round || len(records) < said+1 {
			t.Errorf("it said %d, and %d records are there", said, len(records))
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"kind":"released","id":"mig-1","time":"2026-01-01T00:00:00Z"}` + "\n"))
	f.Add([]byte(`{"kind":"x"}` + "\n" + `{"ki`))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "j")
		must(t, os.WriteFile(path, b, 0o600))
		before, err := journal.Read(path)
		j, opened, openErr := journal.Open(path)
		if (err == nil) != (openErr == nil) {
			t.Fatalf("read says %v, open says %v", err, openErr)
		}
		if err != nil {
			if fault.KindOf(err) != fault.Internal {
				t.Fatalf("got %v", err)
			}
			return
		}
		must(t, j.Append("more", "", nil))
		must(t, j.Close())
		after, err := journal.Read(path)
		must(t, err)
		if kinds(before) != kinds(opened) || len(after) != len(before)+1 {
			t.Errorf("%q: read %d, opened %d, after one more %d", b, len(before), len(opened), len(after))
		}
	})
}
