package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// modulesDir is where scripts/setup unpacks the guest kernel's modules.
func modulesDir(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("GODWIT_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(base, "godwit")
	}
	dir := filepath.Join(cache, "kernel", "modules")
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("%v; run make setup", err)
	}
	return dir
}

func TestInitramfsIsTheSameEveryTime(t *testing.T) {
	var sums [2]string
	for i := range sums {
		t.Setenv("TMPDIR", t.TempDir()) // another scratch folder, another umask and another time must not matter
		t.Setenv("GOFLAGS", []string{"", "-v"}[i])
		var archive bytes.Buffer
		if err := Initramfs(t.Context(), &archive, "", modulesDir(t)); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(archive.Bytes())
		sums[i] = hex.EncodeToString(sum[:])
		t.Logf("%d KiB, sha256 %s", archive.Len()>>10, sums[i])
	}
	if sums[0] != sums[1] {
		t.Error("two builds differ")
	}
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	modules, err := Modules(modulesDir(t), Wanted)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range modules {
		needs, err := dependencies(m.Path)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range needs {
			if !seen[other] {
				t.Errorf("%s comes before %s, which it needs", m.Name, other)
			}
		}
		seen[m.Name] = true
	}
	builtin, err := os.ReadFile(filepath.Join(modulesDir(t), builtinFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"virtio_ring", "net_failover"}, Wanted...) {
		if !seen[name] && !bytes.Contains(builtin, []byte("/"+name+".ko\n")) {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestWhatIsNoModuleIsSaid(t *testing.T) {
	if _, err := Modules(modulesDir(t), []string{"no_such"}); err == nil || !strings.Contains(err.Error(), "module no_such, needed by the guest") {
		t.Error(err)
	}
	dir := t.TempDir()
	if _, err := Modules(dir, []string{"fake"}); err == nil || !strings.Contains(err.Error(), "modules.builtin") {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/drivers/virtio/virtio-pci.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if modules, err := Modules(dir, []string{"virtio_pci"}); err != nil || len(modules) != 0 {
		t.Errorf("what is built in gives %v, %v", modules, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fake.ko"), []byte("not an object file"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Modules(dir, []string{"fake"}); err == nil {
		t.Error("a text file passed for a module")
	}
}

func TestArchiveIsWhatTheKernelReads(t *testing.T) {
	var archive bytes.Buffer
	err := writeArchive(&archive, []entry{
		{name: "dev", mode: typeDir | 0o755},
		{name: "dev/console", mode: typeChar | 0o600, major: 5, minor: 1},
		{name: "init", mode: typeFile | 0o755, content: []byte("hello")},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = "" +
		"070701" + "00000001" + "000041ed" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "dev\x00\x00\x00" +
		"070701" + "00000002" + "00002180" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000005" + "00000001" + "0000000c" + "00000000" + "dev/console\x00\x00\x00" +
		"070701" + "00000003" + "000081ed" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000005" + "00000000" + "init\x00\x00" + "hello\x00\x00\x00" +
		"070701" + "00000004" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "0000000b" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if got := archive.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
