package gate

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

const badConfigFile = "testdata/bad-input-config.txt"

// The story: people write configurations, and mistype them. No agent is needed to be told.
func TestBadConfigurations(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"syntax.toml": "data = \"/srv/godwit\"\nlog-level = debug\n",
		"twice.toml":  "[limits]\ncalls = 1\ncalls = 2\n",
		"words.toml": `dta = "/srv/godwit"
log-level = "loud"
socket-group = 7
[limits]
calls = "many"
call-burst = 10
request-size = "3 boxes"
[log-lvels]
agent = "debug"
[networks.lan]
brige = "br0"
[networks.dmz]
bridge = "br1"
uplink = "eth1"
`,
		"places.toml":  "data = \"/etc/hostname\"\nqemu = \"/opt/no/qemu\"\nuser = \"nemo\"\nsocket-group = \"nemos\"\n[networks.lan]\nbridge = \"br-nemo\"\n",
		"numbers.toml": "[limits]\nconnections = 10\nstreams = 500\n",
		"old.toml":     "data = \"" + filepath.Join(dir, "nothing") + "\"\n",
		"good.toml":    "log-level = \"debug\"\n",
		"bundle.tgz":   "somebody's",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	var said strings.Builder
	said.WriteString("# What Godwit answers to mistakes in its configuration: $ the command, its exit code, its standard error. Made by -rewrite.\n")
	for _, c := range []mistake{
		{"text without quotes", 0, words("config check " + file("syntax.toml")), 2},
		{"a key given twice", 0, words("config check " + file("twice.toml")), 2},
		{"keys and values that are none, all at once", 0, words("config check " + file("words.toml")), 2},
		{"what this machine does not have, all at once", 0, words("config check " + file("places.toml")), 2},
		{"settings that do not fit together", 0, words("config check " + file("numbers.toml")), 2},
		{"a file that is not there", 0, words("config check " + file("none.toml")), 2},
		{"two files", 0, words("config check a b"), 2},
		{"a folder", 0, []string{"config", "check", dir}, 2},
		{"the same, named by the flag", 0, words("config show --config " + file("none.toml")), 2},
		{"showing what cannot be read", 0, words("config show --config " + file("twice.toml")), 2},
		{"showing something", 0, words("config show everything"), 2},
		{"a flag with a value that is none", 0, words("config show --config " + file("good.toml") + " --limits-calls lots"), 2},
		{"running with it", 0, words("run --config " + file("good.toml") + " --log-format xml --log-level loud"), 2},
		{"running with a broken file", 0, words("run --config " + file("numbers.toml")), 2},
		{"running where no host is", 0, words("run --config " + file("old.toml")), 3},
		{"a dump where no host is", 0, words("store dump --config " + file("old.toml")), 3},
		{"a dump with a broken file", 0, words("store dump --config " + file("syntax.toml")), 2},
		{"asking the agent with a broken file that was named", 0, words("vm ls --config " + file("numbers.toml")), 2},
		{"a bundle over a file", 0, words("support-bundle --config " + file("good.toml") + " --output " + file("bundle.tgz")), 4},
		{"a bundle into nowhere", 0, words("support-bundle --config " + file("good.toml") + " --output " + file("no/where.tgz")), 2},
		{"a bundle of something", 0, words("support-bundle vm-1"), 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := exec.CommandContext(step(t), commandLine, c.command...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			if code := lab.ExitCode(err); code != c.exit {
				t.Errorf("exit code %d, not %d: %v", code, c.exit, err)
			}
			if out.Len() > 0 {
				t.Errorf("it wrote to standard output: %s", out.String())
			}
			text := strings.TrimSpace(errs.String())
			if lines := strings.Split(text, "\n"); text == "" || len(lines) > 1 && !allReasons(lines) {
				t.Errorf("not one clear line, or a line for each reason:\n%s", text)
			}
			tidy := strings.NewReplacer(dir, "/dir")
			fmt.Fprintf(&said, "\n# %s\n$ godwit %s\nexit %d\n%s\n", c.what, tidy.Replace(strings.Join(c.command, " ")), c.exit, tidy.Replace(text))
		})
	}
	if text, err := os.ReadFile(file("bundle.tgz")); err != nil || string(text) != "somebody's" {
		t.Errorf("the file that was there is %q: %v", text, err)
	}
	compare(t, badConfigFile, said.String())
}
