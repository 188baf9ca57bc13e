package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

const badInputFile = "testdata/bad-input.txt"

// mistakes is a cluster for people who make mistakes:
//
//	host-1, host-2  share the datastore "shared"
//	host-3          has another folder as a datastore of the name "shared", and the full datastore "full"
//	host-4          has a folder with a copy of the marker of "shared"
//	runs, rests     VMs on host-1, one running and one not; small is one on host-3
type mistakes struct {
	*lab.Cluster

	full string // folder of the full datastore
}

func makeMistakes(t *testing.T) *mistakes {
	t.Helper()
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 2})}
	other, copied := filepath.Join(m.Dir, "other"), filepath.Join(m.Dir, "copied")
	m.full = filepath.Join(m.Dir, "full")
	for _, dir := range []string{other, copied, m.full} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The cluster's end unmounts it.
	if err := unix.Mount("godwit-gate", m.full, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	marker, err := os.ReadFile(filepath.Join(m.Datastore, ".godwit-datastore"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(copied, ".godwit-datastore"), marker, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(copied, "locks"), 0o755); err != nil {
		t.Fatal(err)
	}
	third, err := m.AddHost(step(t), "shared="+other, "full="+m.full+",local")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.AddHost(step(t), "shared="+copied); err != nil {
		t.Fatal(err)
	}
	slow := tiny.Options{Pages: 1024, Fill: 8 << 10, Rate: 64} // 32 MiB to send: half a minute at 1 MiB/s
	for _, file := range []string{filepath.Join(m.Datastore, "tiny.rom"), filepath.Join(other, "tiny.rom"), filepath.Join(m.full, "tiny.rom")} {
		if err := os.WriteFile(file, tiny.Heartbeat(slow), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"note.txt": "this is no image\n", "empty.qcow2": ""} {
		if err := os.WriteFile(filepath.Join(m.Datastore, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := m.Hosts[0]
	for _, args := range [][]string{
		{"network", "create", "lan", "--subnet", "10.11.0.0/24"},
		{"vm", "create", "runs", "--memory", "48M", "--firmware", "tiny.rom", "--disk", "size=16M", "--nic", "lan"},
		{"vm", "start", "runs"},
		{"vm", "create", "rests", "--memory", "48M", "--firmware", "tiny.rom", "--disk", "size=16M"},
	} {
		if _, err := first.Godwit(step(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := third.Godwit(step(t), "vm", "create", "small", "--memory", "48M", "--firmware", "tiny.rom@full"); err != nil {
		t.Fatal(err)
	}
	m.fill(t)
	waitMembers(t, first, "host-1", "host-2", "host-3") // the store's own moves are no answer to a mistake
	return m
}

// fill writes to the full datastore until nothing fits any more.
func (m *mistakes) fill(t *testing.T) {
	t.Helper()
	file, err := os.Create(filepath.Join(m.full, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	block := make([]byte, 4<<10)
	for {
		if _, err := file.Write(block); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// mistake is a command that must be refused.
type mistake struct {
	what    string // in words, for the file
	on      int    // number of the host whose command line it is
	command []string
	exit    int
}

// The story: people make mistakes. Each is answered with one line, or one for each reason, that says what is wrong and what to do, with
// the exit code that the manual promises, and changes nothing at all. The answers are in testdata/bad-input.txt, to be read.
func TestBadInput(t *testing.T) {
	t.Parallel()
	m := makeMistakes(t)
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes: $ the command, its exit code, its standard error. Made by -rewrite; read it as prose.\n")
	try := func(all ...mistake) {
		t.Helper()
		for _, c := range all {
			t.Run(c.what, func(t *testing.T) { file.WriteString(m.try(t, c)) })
		}
	}
	try(unknownNames()...)
	try(malformedValues()...)
	try(badImages(m)...)
	try(wrongStates()...)
	try(wrongPlaces()...)
	m.secondMigration(t, try)
	m.tokens(t, try)
	if err := m.Hosts[3].Down(); err != nil {
		t.Fatal(err)
	}
	try(mistake{"a host that does not answer", 1, words("vm migrate runs --to host-4"), 5})
	if err := m.Hosts[3].Up(step(t)); err != nil {
		t.Fatal(err)
	}
	compare(t, badInputFile, file.String())
}

// try runs the command and demands that it fails as it should, in few words, and changes nothing. It returns the words.
func (m *mistakes) try(t *testing.T, c mistake) string {
	t.Helper()
	before := m.state(t)
	out, errs, err := m.Hosts[c.on-1].Command(step(t), c.command...)
	if code := lab.ExitCode(err); code != c.exit {
		t.Errorf("exit code %d, not %d: %v", code, c.exit, err)
	}
	if len(out) > 0 {
		t.Errorf("it wrote to standard output: %s", out)
	}
	said := strings.TrimSpace(string(errs))
	lines := strings.Split(said, "\n")
	if said == "" || len(lines) > 1 && !allReasons(lines) {
		t.Errorf("not one clear line, or a line for each reason:\n%s", said)
	}
	after := m.state(t)
	if strings.HasSuffix(strings.Join(c.command, " "), "vm start small") {
		m.stillStopped(t, before, after)
	}
	for key := range maps.Keys(union(before, after)) {
		if before[key] != after[key] {
			t.Errorf("%s was %q and is %q", key, before[key], after[key])
		}
	}
	return fmt.Sprintf("\n# %s\n$ godwit %s\nexit %d\n%s\n", c.what, m.tidy(strings.Join(quoted(c.command), " ")), c.exit, m.tidy(said))
}

// stillStopped takes into account that an attempt to start a VM has its traces: its generation, and the reason in its status. The VM
// itself must be stopped as before.
func (m *mistakes) stillStopped(t *testing.T, before, after map[string]string) {
	t.Helper()
	vm, err := m.Hosts[0].VM(step(t), "small")
	if err != nil {
		t.Fatal(err)
	}
	if vm.GetStatus().GetState() != inventory.Stopped.String() || vm.GetRun().GetWanted() != godwitv1.Power_POWER_OFF {
		t.Errorf("it is %s, and wanted %s", vm.GetStatus().GetState(), vm.GetRun().GetWanted())
	}
	for _, part := range []string{"run", "status"} {
		key := "/godwit/vm/" + vm.GetId() + "/" + part
		after[key] = before[key]
	}
}

// allReasons reports whether the lines are a heading and reasons.
func allReasons(lines []string) bool {
	for _, l := range lines[1:] {
		if !strings.HasPrefix(l, "  - ") {
			return false
		}
	}
	return strings.HasSuffix(lines[0], ":")
}

func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// notes are the keys that a refused command may write: what hosts say of themselves, and that somebody asked.
var notes = []string{"/godwit/host/", "/godwit/task/", "/godwit/event/", "/godwit/request/"}

// state is all that a refused command must leave as it was: every record of the store but the notes, the
// datastores' files, and the VMs' processes.
func (m *mistakes) state(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	text, err := m.Hosts[0].Godwit(step(t), "store", "dump", "--data", m.Hosts[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Records []struct {
			Key      string
			Revision int64
		}
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		t.Fatal(err)
	}
	for _, r := range dump.Records {
		if !slices.ContainsFunc(notes, func(root string) bool { return strings.HasPrefix(r.Key, root) }) {
			state[r.Key] = fmt.Sprint("revision ", r.Revision)
		}
	}
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries { // the hosts' folders among them
		state[filepath.Join(m.Dir, e.Name())] = "is there"
	}
	for _, dir := range []string{m.Datastore, m.full, filepath.Join(m.Dir, "other"), filepath.Join(m.Dir, "copied")} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			state[path] = fmt.Sprint(info.Size(), " bytes of ", info.ModTime())
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range m.Hosts {
		found, err := filepath.Glob(filepath.Join(h.Run, "vms", "*", "pid"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			pid, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			state[path] = string(pid)
		}
	}
	return state
}

// The words that differ from run to run.
var (
	idRE    = regexp.MustCompile(`\b(vm|mig|ds|task)-[a-z2-7]{10}\b`)
	timeRE  = regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	tokenRE = regexp.MustCompile(`\bgw1\.[A-Za-z0-9_-]{20,}`)
	loopRE  = regexp.MustCompile(`\b127\.\d+\.\d+\.`)
	freeRE  = regexp.MustCompile(`\b[\d.]+ [MGT]iB of memory free`)
)

// tidy replaces them.
func (m *mistakes) tidy(text string) string {
	text = strings.ReplaceAll(text, m.Dir, "/lab")
	text = idRE.ReplaceAllString(text, "$1-ID")
	text = timeRE.ReplaceAllString(text, "TIME")
	text = freeRE.ReplaceAllString(text, "FREE of memory free")
	text = tokenRE.ReplaceAllString(text, "TOKEN")
	return loopRE.ReplaceAllString(text, "127.0.0.")
}

// words splits a command where it has spaces.
func words(command string) []string { return strings.Fields(command) }

// quoted shows words as a shell would need them.
func quoted(args []string) []string {
	all := slices.Clone(args)
	for i, a := range all {
		if a == "" || strings.ContainsAny(a, " \"") {
			all[i] = "'" + a + "'"
		}
	}
	return all
}

// compare compares with the file, or rewrites it.
func compare(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) == got {
		return
	}
	made := filepath.Join(t.TempDir(), "got.txt")
	if err := os.WriteFile(made, []byte(got), 0o644); err != nil {
		t.Fatal(err)
	}
	diff, _ := exec.CommandContext(t.Context(), "diff", "-u", file, made).CombinedOutput() // it exits 1 for a difference
	t.Errorf("the answers changed; if they are better, run with -rewrite and read them:\n%s", diff)
}
