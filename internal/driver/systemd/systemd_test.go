package systemd

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

// tree lists the folder: every path, its mode, and what a file says.
func tree(t *testing.T, root string) string {
	t.Helper()
	var text strings.Builder
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text.WriteString(strings.TrimPrefix(path, root) + " " + info.Mode().String())
		if info.Mode().IsRegular() {
			has, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text.WriteString(" " + string(has))
		}
		text.WriteString("\n")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

const config = "/etc/godwit/config.toml"

func files(t *testing.T) []File {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	all, err := Service{Binary: self, Places: Places{"/var/lib/godwit", "/run/godwit"}, User: "godwit-vm"}.Files()
	if err != nil {
		t.Fatal(err)
	}
	return append(all, File{Path: config, Text: "# nothing\n", Keep: true})
}

// host makes a folder that looks like a host's, with a file of somebody else's where ours will be.
func host(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, root, "/etc/systemd/system/other.service", "[Service]\n")
	return root
}

func write(t *testing.T, root, path, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, root string) *Setup {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func install(t *testing.T, root string) []string {
	t.Helper()
	written, err := open(t, root).Install(files(t), Places{"/var/lib/godwit", "/run/godwit"})
	if err != nil {
		t.Fatal(err)
	}
	return written
}

// The story: installed, installed once more, taken away: the host is what it was, to the byte.
func TestTheHostIsLeftAsItWas(t *testing.T) {
	root := host(t)
	before := tree(t, root)
	if written := install(t, root); len(written) != 4 {
		t.Errorf("wrote %v", written)
	}
	installed := tree(t, root)
	if written := install(t, root); len(written) != 0 || tree(t, root) != installed {
		t.Errorf("the second time it wrote %v", written)
	}
	s := open(t, root)
	if !s.Installed() || s.Places().Run != "/run/godwit" {
		t.Errorf("places are %+v", s.Places())
	}
	removed, kept, err := s.Uninstall(false)
	if err != nil || len(kept) > 0 || len(removed) != 7 { // four files, three folders
		t.Errorf("removed %v, kept %v: %v", removed, kept, err)
	}
	if after := tree(t, root); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if _, _, err := open(t, root).Uninstall(false); !fault.Is(err, fault.NotFound) {
		t.Errorf("once more: %v", err)
	}
}

func TestWhatIsNotOursStays(t *testing.T) {
	root := host(t)
	write(t, root, UnitFile, "[Service]\n# somebody's own\n")
	before := tree(t, root)
	if _, err := open(t, root).Install(files(t), Places{}); !fault.Is(err, fault.Conflict) || tree(t, root) != before {
		t.Errorf("a unit of somebody's own: %v", err)
	}
	if err := os.Remove(filepath.Join(root, UnitFile)); err != nil {
		t.Fatal(err)
	}
	// A configuration that was there before stays as it is, through install, uninstall and purge.
	if err := os.Mkdir(filepath.Join(root, "etc/godwit"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, root, config, "data = \"/srv/godwit\"\n")
	before = tree(t, root)
	if written := install(t, root); len(written) != 3 {
		t.Errorf("wrote %v", written)
	}
	if _, _, err := open(t, root).Uninstall(true); err != nil || tree(t, root) != before {
		t.Errorf("before:\n%s\nafter (%v):\n%s", before, err, tree(t, root))
	}
}

func TestWhatWasChanged(t *testing.T) {
	root := host(t)
	before := tree(t, root)
	install(t, root)
	write(t, root, config, "level = \"debug\"\n")
	write(t, root, UnitFile, "[Service]\n# tuned\n")
	_, err := open(t, root).Install(files(t), Places{})
	if reasons := fault.Reasons(err); !fault.Is(err, fault.Conflict) || len(reasons) != 1 || !strings.Contains(reasons[0], "drop-in") && !strings.Contains(reasons[0], "systemctl edit") {
		t.Errorf("a unit that was changed: %v", err)
	}
	removed, kept, err := open(t, root).Uninstall(false)
	if err != nil || len(kept) != 1 || !strings.HasPrefix(kept[0], filepath.Join(root, config)) {
		t.Errorf("removed %v, kept %v: %v", removed, kept, err)
	}
	// The next install finds the configuration and leaves it; what was not written this time is not taken away either.
	install(t, root)
	if _, _, err := open(t, root).Uninstall(true); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(root, config)); err != nil || string(text) != "level = \"debug\"\n" {
		t.Errorf("the configuration is %q (%v)", text, err)
	}
	if err := os.RemoveAll(filepath.Join(root, "etc/godwit")); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, root); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	install(t, root)
	write(t, root, config, "level = \"debug\"\n")
	if _, kept, err := open(t, root).Uninstall(true); err != nil || len(kept) > 0 || tree(t, root) != before {
		t.Errorf("purge keeps %v: %v", kept, err)
	}
}

// systemd's own checker has nothing to say about the unit.
func TestSystemdTakesTheUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	root := t.TempDir()
	install(t, root)
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", filepath.Join(root, UnitFile)).CombinedOutput()
	said := slices.DeleteFunc(strings.Split(string(out), "\n"), func(line string) bool { return !strings.Contains(line, "godwit") })
	if err != nil || len(said) > 0 {
		t.Errorf("%v: %s", err, strings.Join(said, "\n"))
	}
}

func TestPathsThatAUnitCannotHave(t *testing.T) {
	for _, bad := range []string{"", "godwit", "/opt/my godwit", "/opt/%n", "/opt/a;b"} {
		if _, err := (Service{Binary: bad, Places: Places{"/var/lib/godwit", "/run/godwit"}}).Files(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestABinaryThatOthersCanChange(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, whose files are the good ones")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "godwit")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := CheckBinary(path); err != nil {
		t.Errorf("root's own: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := CheckBinary(path); !fault.Is(err, fault.Denied) || len(fault.Reasons(err)) != 2 {
		t.Errorf("somebody else's, in a folder for everybody: %v", err)
	}
}
