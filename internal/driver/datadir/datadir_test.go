package datadir

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

// TestMain is also the process of TestOneRunAtATime that holds a folder: a lock that a process keeps from itself proves nothing.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DATADIR_HOLD"); dir != "" {
		if _, err := Open(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("holds")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test lets go
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// former is the data folder as the version before the version file left it, with what a cut-off write left behind.
var former = map[string]string{
	"host.json 0600":         "{\"schema\":1}\n",
	"host.json.new 0600":     "{\"sch",
	"pki/ca.crt 0644":        "ca",
	"pki/ca.key 0600":        "ca's key",
	"pki/host.crt 0644":      "certificate",
	"pki/host.crt.new 0644":  "certif",
	"pki/host.key 0640":      "key",
	"store/member/snap 0600": "of etcd",
}

const migrated = `. drwx------
host.json -rw------- {"schema":1}
lock -rw------- PID
pki drwx------
pki/ca.crt -rw-r--r-- ca
pki/ca.key -rw------- ca's key
pki/host.crt -rw-r--r-- certificate
pki/host.key -rw------- key
store drwxr-xr-x
store/member drwxr-xr-x
store/member/snap -rw------- of etcd
version -rw------- 2
`

func makeFormer(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	for name, text := range former {
		path, mode, _ := strings.Cut(name, " ")
		path = filepath.Join(dir, path)
		var bits fs.FileMode
		if _, err := fmt.Sscanf(mode, "%o", &bits); err != nil {
			t.Fatal(err)
		}
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), bits), os.Chmod(path, bits))
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %v", name, info.Mode())
		if !d.IsDir() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if name == lockFile {
				text = []byte("PID")
			}
			fmt.Fprintf(&b, " %s", strings.TrimSpace(string(text)))
		}
		b.WriteString("\n")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAFormerFolderIsBroughtToThisVersion(t *testing.T) {
	dir := makeFormer(t)
	if err := Check(dir); err != nil {
		t.Errorf("the former layout is not readable any more: %v", err)
	}
	if f := open(t, dir); f.From != 1 {
		t.Errorf("it was version %d", f.From)
	}
	if got := tree(t, dir); got != migrated {
		t.Errorf("it became\n%s, not\n%s", got, migrated)
	}
	if f := open(t, dir); f.From != Version || tree(t, dir) != migrated {
		t.Errorf("opened again it is version %d and\n%s", f.From, tree(t, dir))
	}
}

// A host that loses power in the middle goes on at its next start, wherever it was cut off.
func TestAMigrationThatWasCutOffIsDoneAgain(t *testing.T) {
	for cut := 1; ; cut++ {
		dir := makeFormer(t)
		done := cutOff(t, dir, cut)
		open(t, dir)
		if got := tree(t, dir); got != migrated {
			t.Fatalf("cut off after %d steps it became\n%s", cut, got)
		}
		if done {
			return
		}
	}
}

// cutOff leaves the folder as a migration leaves it that does only its first steps, and says whether these were all.
func cutOff(t *testing.T, dir string, steps int) (all bool) {
	t.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	for i, step := range []func() error{
		func() error { return os.Chmod(dir, 0o700) },
		func() error { return os.Remove(path("host.json.new")) },
		func() error { return os.Chmod(path("pki"), 0o700) },
		func() error { return os.Remove(path("pki/host.crt.new")) },
		func() error { return os.Chmod(path("pki/host.key"), 0o600) },
		func() error { return os.WriteFile(path("version.new"), []byte("2"), 0o600) }, // not yet renamed
	} {
		if i == steps {
			return false
		}
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

func TestANewerFolderIsRefusedAndLeftAlone(t *testing.T) {
	dir := makeFormer(t)
	if err := os.WriteFile(filepath.Join(dir, versionFile), []byte("3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Open": second(Open(dir)), "Check": Check(dir)} {
		if !fault.Is(err, fault.Incompatible) || !strings.Contains(err.Error(), "has version 3 and this godwit reads up to 2: upgrade godwit") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "host.json.new")); err != nil {
		t.Errorf("it was touched: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, versionFile), []byte("two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(dir); !fault.Is(err, fault.Internal) {
		t.Errorf("a version that is none: %v", err)
	}
}

func second(_ *Folder, err error) error { return err }

func TestNoHostsFolderIsNotFound(t *testing.T) {
	if _, err := Open(t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestOneRunAtATime(t *testing.T) {
	dir := makeFormer(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "DATADIR_HOLD="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "holds\n" {
		t.Fatalf("the first did not get it: %q %v", line, err)
	}
	_, err = Open(dir)
	want := fmt.Sprintf("in use by another godwit run with PID %d: end that one first", cmd.Process.Pid)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), want) {
		t.Errorf("the second got %v", err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	open(t, dir)
}

func TestTmpfsIsTold(t *testing.T) {
	for dir, want := range map[string]bool{"/dev/shm/godwit-not-there/run": true, "/proc": false} {
		got, err := OnTmpfs(dir)
		if err != nil || got != want {
			t.Errorf("%s: %v %v", dir, got, err)
		}
	}
}
