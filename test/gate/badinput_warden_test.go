package gate

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

const badInputWardenFile = "testdata/bad-input-warden.txt"

// etc lists what is below the folder's etc, with sizes and times.
func etc(t *testing.T, root string) string {
	t.Helper()
	var text strings.Builder
	if err := filepath.WalkDir(filepath.Join(root, "etc"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&text, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// processRE is a process id in an answer.
var processRE = regexp.MustCompile(`process \d+`)

// The story: somebody makes Godwit a service in a wrong way, and takes it away where a VM runs. Nothing changes, and every reason is said at
// once. Without a reason against it, the host is then left as it was. The answers are in testdata/bad-input-warden.txt.
func TestBadInputWarden(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Options{Hosts: 1})
	h, root := c.Hosts[0], c.Dir
	write := func(name string, text []byte, mode fs.FileMode) string {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("shared/tiny.rom", tiny.Heartbeat(tiny.Options{Pages: 16, Fill: 1, Rate: 1}), 0o644)
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	theirs := write("opt/theirs", nil, 0o755)
	if err := os.Chown(theirs, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	godwit := func(args string) {
		t.Helper()
		if _, err := h.Godwit(step(t), words(args)...); err != nil {
			t.Fatal(err)
		}
	}
	godwit("vm create runs --memory 48M --firmware tiny.rom")
	godwit("vm start runs")
	vm, err := h.VM(step(t), "runs")
	if err != nil {
		t.Fatal(err)
	}
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes about its service: $ the command, its exit code, its standard error. Made by -rewrite; read it as prose.\n")
	m := &mistakes{Cluster: c}
	try := func(what, command string, exit int) {
		t.Run(what, func(t *testing.T) {
			before := etc(t, root)
			out, errs, err := h.Command(step(t), words(strings.ReplaceAll(command, "ROOT", root))...)
			if code := lab.ExitCode(err); code != exit || len(out) > 0 {
				t.Errorf("exit code %d, not %d, and output %q: %v", code, exit, out, err)
			}
			if after := etc(t, root); after != before {
				t.Errorf("files were\n%s\nand are\n%s", before, after)
			}
			said := strings.TrimSpace(string(errs))
			if lines := strings.Split(said, "\n"); said == "" || len(lines) > 1 && !allReasons(lines) {
				t.Errorf("not one clear line, or a line for each reason:\n%s", said)
			}
			said = processRE.ReplaceAllString(m.tidy(said), "process PID")
			fmt.Fprintf(&file, "\n# %s\n$ godwit %s\nexit %d\n%s\n", what, command, exit, strings.ReplaceAll(said, "/lab", "ROOT"))
		})
	}
	service := " --root ROOT --binary /opt/godwit --data /h1/data --run /h1/run"
	try("an argument", "install here", 2)
	try("a root that is no path", "install --root image", 2)
	try("a root that is not there", "install --root ROOT/image", 3)
	try("to start what is only an image", "install --start"+service, 2)
	try("a path that no unit can have", "install --root ROOT --binary /opt/$HOME/godwit", 2)
	try("a binary that others can change", "install --root ROOT --binary /opt/theirs", 5)
	try("to take away what is not there", "uninstall --root ROOT", 3)
	unit := write("etc/systemd/system/godwit.service", []byte("[Service]\nExecStart=/bin/true\n"), 0o644)
	try("a unit of somebody's own", "install"+service, 4)
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(unit))); err != nil {
		t.Fatal(err)
	}
	before := etc(t, root)
	godwit("install" + strings.ReplaceAll(service, "ROOT", root))
	write("etc/sysusers.d/godwit.conf", []byte("# tuned\n"), 0o644)
	try("files that were changed", "install"+service, 4)
	try("while a vm runs", "uninstall --root ROOT", 4)
	try("to purge folders that may have more in them, while a vm runs", "uninstall --root ROOT --purge", 4)
	if _, err := h.Godwit(step(t), "run", "--data", h.Data, "--run", h.Run); lab.ExitCode(err) != 4 {
		t.Errorf("a second warden on one host: %v", err)
	}

	// Without a VM and a godwit there is nothing against it.
	godwit("vm stop runs --force")
	if err := h.Down(); err != nil {
		t.Fatal(err)
	}
	out, err := h.Godwit(step(t), "uninstall", "--root", root)
	if err != nil || !strings.Contains(string(out), "kept "+h.Data+"\n") {
		t.Errorf("%v:\n%s", err, out)
	}
	if after := etc(t, root); times.ReplaceAllString(after, "") != times.ReplaceAllString(before, "") {
		t.Errorf("etc was\n%s\nand is\n%s", before, after)
	}
	if left := h.QEMUs(vm.GetId()); len(left) > 0 {
		t.Errorf("processes %v", left)
	}
	compare(t, badInputWardenFile, file.String())
}

// times are sizes and times of folders, which come and go with what was in them.
var times = regexp.MustCompile(` \d+ \d{4}-.*`)
