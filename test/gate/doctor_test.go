package gate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: a sysadmin asks the doctor before there is a host, while it runs, after another host has gone, and when the agent does not
// start. Each time every check is there, and what is not good says what to do.
func TestDoctor(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Options{Hosts: 2})
	first, second := c.Hosts[0], c.Hosts[1]

	for _, want := range []string{
		"qemu", "kvm", "migration", "uefi", "user", "cgroup", "switch", "arbiter", "certificate", "cpu", "ports", "memory", "clock", "data", "run", "files", "mlock", "service",
		"watchdog", "firewall", "datastore",
	} {
		if one(t, first, want) == nil {
			t.Errorf("the agent's doctor says nothing of %s", want)
		}
	}
	if ports := one(t, first, "ports"); ports.GetState() != "good" {
		t.Errorf("all hosts run, and the doctor says %v", ports)
	}
	if remote := one(t, first, "certificate", second.Name); remote.GetState() != "good" {
		t.Errorf("the doctor says of another host's certificate: %v", remote)
	}
	if err := second.Down(); err != nil {
		t.Fatal(err)
	}
	if ports := one(t, first, "ports"); ports.GetState() != "warn" || !strings.Contains(ports.GetDetail(), "host-2's agent") ||
		!strings.Contains(ports.GetDetail(), "host-2's switch") {
		t.Errorf("a host is down, and the doctor says %v", ports)
	}

	// Without an agent: this host's own folder, and a machine that is no host.
	if agent := one(t, second, "agent", "--data", second.Data, "--run", second.Run); agent.GetState() != "bad" || agent.GetFix() == "" {
		t.Errorf("the agent is down, and the doctor says %v", agent)
	}
	if _, err := second.Godwit(step(t), "doctor", "--data", second.Data); lab.ExitCode(err) != 5 {
		t.Errorf("the agent is down, and the doctor ends with %v", err)
	}
	for _, want := range []string{"qemu", "migration", "datastore", "clock"} {
		if one(t, second, want, "--data", second.Data) == nil {
			t.Errorf("without an agent the doctor says nothing of %s", want)
		}
	}
	nowhere := filepath.Join(c.Dir, "nowhere")
	if agent := one(t, second, "agent", "--data", nowhere); agent.GetState() != "warn" || !strings.Contains(agent.GetFix(), "godwit init") {
		t.Errorf("this machine is no host, and the doctor says %v", agent)
	}
	if _, err := os.Stat(nowhere); err == nil {
		t.Error("the doctor made a data folder")
	}
}

// one asks the doctor, looks at each of its lines, and returns the one of that name.
func one(t *testing.T, h *lab.Host, name string, args ...string) (found *godwitv1.Check) {
	t.Helper()
	answer := &godwitv1.DoctorResponse{}
	out, err := h.Godwit(step(t), slices.Concat([]string{"doctor", "--json"}, args)...)
	if code := lab.ExitCode(err); code != 0 && code != 5 {
		t.Fatal(err)
	}
	if err := lab.ReadJSON(out, answer); err != nil {
		t.Fatal(err)
	}
	bad := 0
	for _, check := range answer.GetChecks() {
		switch check.GetState() {
		case "good":
		case "bad":
			bad++
			fallthrough
		case "warn":
			if check.GetFix() == "" {
				t.Errorf("%v says nothing of what to do", check)
			}
		default:
			t.Errorf("%v has no state", check)
		}
		if check.GetName() == name {
			found = check
		}
	}
	if refused := lab.ExitCode(err) == 5; refused != (bad > 0) {
		t.Errorf("%d lines are bad, and it ends with %v", bad, err)
	}
	return found
}

// TestBadInputOfPages: what is asked for wrongly of the doctor, of completion and of the manual. It needs no cluster.
func TestBadInputOfPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := lab.Alone(binary, commandLine, filepath.Join(dir, "nobody.sock"))
	var said strings.Builder
	said.WriteString("# What Godwit answers to mistakes about pages: $ the command, its exit code, its standard error. Made by -rewrite; read it as prose.\n")
	for _, c := range []mistake{
		{"a shell that has no completion", 0, words("completion powershell"), 2},
		{"no shell", 0, words("completion"), 2},
		{"two shells", 0, words("completion bash zsh"), 2},
		{"no folder", 0, words("man"), 2},
		{"a file where the folder should be", 0, []string{"man", file}, 5},
		{"a host's doctor without an agent", 0, words("doctor host-1"), 6},
		{"two hosts", 0, words("doctor host-1 host-2"), 2},
		{"a flag that doctor does not have", 0, words("doctor --fix"), 2},
	} {
		out, errs, err := h.Command(step(t), c.command...)
		if code := lab.ExitCode(err); code != c.exit || len(out) > 0 {
			t.Errorf("%s: exit code %d, not %d, and on standard output %q", c.what, code, c.exit, out)
		}
		if n := strings.Count(string(errs), "\n"); n != 1 {
			t.Errorf("%s: %d lines: %s", c.what, n, errs)
		}
		fmt.Fprintf(&said, "\n# %s\n$ godwit %s\nexit %d\n%s", c.what, strings.Join(quoted(c.command), " "), c.exit, errs)
	}
	compare(t, "testdata/bad-input-pages.txt", strings.ReplaceAll(said.String(), dir, "/lab"))
}
