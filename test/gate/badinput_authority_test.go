package gate

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

const badAuthorityFile = "testdata/bad-input-authority.txt"

// The story: somebody wants failover to be faster and asks for times at which two copies of a VM could run. Each is refused with its arithmetic.
func TestBadAuthority(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	said.WriteString("# What Godwit answers to times of authority that are not safe: $ the command, its exit code, its standard error. Made by -rewrite.\n")
	for _, c := range []mistake{
		{"a leader that does not wait for the lease", 0, words("config check --authority-silence 8s"), 2},
		{"VMs that stop at the first hiccup", 0, words("config check --authority-stop-after 2s"), 2},
		{"a watchdog that fires after the lease", 0, words("config check --authority-watchdog 4s"), 2},
		{"all of it at once", 0, words("config check --authority-lease 4s --authority-planned-lease 3s --authority-renew-timeout 2s --authority-mass-silent 100"), 2},
		{"times that are none", 0, words("run --authority-lease soon --authority-renew-every 1ms --authority-mass-silent 101"), 2},
		{"running with it", 0, words("run --authority-freeze-after 4s"), 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := exec.CommandContext(step(t), commandLine, c.command...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			if code := lab.ExitCode(err); code != c.exit {
				t.Errorf("exit code %d, not %d: %v", code, c.exit, err)
			}
			text := strings.TrimSpace(errs.String())
			if lines := strings.Split(text, "\n"); out.Len() > 0 || text == "" || len(lines) > 1 && !allReasons(lines) {
				t.Errorf("not one clear line, or a line for each reason, but %q and:\n%s", out.String(), text)
			}
			fmt.Fprintf(&said, "\n# %s\n$ godwit %s\nexit %d\n%s\n", c.what, strings.Join(c.command, " "), c.exit, text)
		})
	}
	compare(t, badAuthorityFile, said.String())
}
