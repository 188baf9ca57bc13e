package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/config"
)

// shown runs "godwit config show --json" and returns the settings by key.
func shown(t *testing.T, args ...string) map[string]config.Value {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"config", "show", "--json"}, args...))
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all []config.Value
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatal(err)
	}
	values := map[string]config.Value{}
	for _, v := range all {
		values[v.Key] = v
	}
	return values
}

func TestEachSourceIsShown(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	text := "data = \"" + dir + "\"\nlog-level = \"warn\"\n[limits]\ncalls = 77\nstreams = 7\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	state := &hostConfig{dir: dir, Host: "host-1", Binary: "/opt/qemu", User: "somebody", Cache: "/var/cache/x"}
	if err := state.save(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODWIT_CONFIG", file)
	t.Setenv("GODWIT_LIMITS_STREAMS", "8")
	t.Setenv("GODWIT_USER", "")
	t.Setenv("GODWIT_DEBUG", "1")
	got := shown(t, "--limits-calls", "78", "--log-levels-agent=error")
	for key, want := range map[string]config.Value{
		"data":             {Text: dir, From: config.File, Where: file + ":1"},
		"limits.calls":     {Text: "78", From: config.Flag, Where: "--limits-calls"},
		"limits.streams":   {Text: "8", From: config.Environment, Where: "GODWIT_LIMITS_STREAMS"},
		"log-level":        {Text: "debug", From: config.Environment, Where: "GODWIT_DEBUG"},
		"log-levels.agent": {Text: "error", From: config.Flag, Where: "--log-levels-agent"},
		"qemu":             {Text: "/opt/qemu", From: config.Init, Where: filepath.Join(dir, "host.json")},
		"user":             {Text: "", From: config.Environment, Where: "GODWIT_USER"},
		"run":              {Text: "/run/godwit", From: config.Default},
	} {
		want.Key = key
		if got[key] != want {
			t.Errorf("%s is %+v, not %+v", key, got[key], want)
		}
	}
	// The variable of the level itself says more than the one that turns all on.
	t.Setenv("GODWIT_LOG_LEVEL", "error")
	if got := shown(t)["log-level"]; got.Text != "error" || got.Where != "GODWIT_LOG_LEVEL" {
		t.Errorf("log-level is %+v", got)
	}
}

// Roles get what run was given by flags, and read file and environment themselves.
func TestRolesGetFlagsAlone(t *testing.T) {
	t.Setenv("GODWIT_LIMITS_STREAMS", "8")
	root := newRoot()
	run, _, err := root.Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	run.RunE = func(cmd *cobra.Command, _ []string) error { args = settingArgs(cmd); return nil }
	file := filepath.Join(t.TempDir(), "none.toml")
	root.SetArgs([]string{"run", "--config", file, "--data", "/srv/with space", "--limits-calls", "9"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(args, "|"), "--config="+file+"|--data=/srv/with space|--limits-calls=9"; got != want {
		t.Errorf("roles get %s, not %s", got, want)
	}
}

// A command that sets up a host takes its folders from the file too, and one that talks to the agent its socket.
func TestCommandsFindTheHostByTheFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte("data = \"/srv/d\"\nrun = \"/srv/r\"\nuser = \"u\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODWIT_CONFIG", file)
	for line, want := range map[string]string{
		"store dump": "data=/srv/d socket=/srv/r/agent.sock", "join TOKEN --user me": "data=/srv/d socket=/srv/r/agent.sock user=me",
		"vm ls": "socket=/srv/r/agent.sock", "vm ls --socket /x": "socket=/x", "store dump --data /y": "data=/y socket=/srv/r/agent.sock",
	} {
		root := newRoot()
		cmd, rest, err := root.Find(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"data", "socket", "user"} {
				if f := cmd.Flags().Lookup(name); f != nil {
					got += name + "=" + f.Value.String() + " "
				}
			}
			return nil
		}
		root.SetArgs(strings.Fields(line))
		if err := root.ExecuteContext(t.Context()); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s (%v) sees %s, not %s: %v", line, rest, got, want, err)
		}
	}
}

// The page shows a file that the program takes, and every setting of it is there.
func TestTheExampleOfThePageIsTaken(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docs, "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```toml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("the page has no example")
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(example), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := config.Resolve(config.Input{File: file, Must: true})
	if err != nil {
		t.Fatal(err)
	}
	if c.SocketGroup != "vmadmins" || c.Networks["lan"].Bridge != "br0" || c.LogFormat != "json" {
		t.Errorf("it is taken for %+v", c)
	}
}
