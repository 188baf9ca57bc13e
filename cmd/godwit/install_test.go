package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The configuration that install writes sets nothing, and each of its comments, made a setting, is its default.
func TestTheInstalledConfiguration(t *testing.T) {
	text := configText()
	show := func(text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs([]string{"config", "show", "--config", path, "--data", t.TempDir()})
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return out.String()
	}
	if out := show(text); bytes.Contains([]byte(out), []byte("config.toml")) {
		t.Errorf("it sets something:\n%s", out)
	}
	all := regexp.MustCompile(`(?m)^# ([a-z-]+ = )`).ReplaceAllString(text, "$1")
	values := regexp.MustCompile(`\s+\S+(\s+\S*config\.toml:\d+)?\s*\n`) // FROM and WHERE
	data := regexp.MustCompile(`(?m)^data .*\n`)                         // given by flag, a new folder each time
	plain := func(out string) string { return data.ReplaceAllString(values.ReplaceAllString(out, "\n"), "") }
	if was, is := plain(show(text)), plain(show(all)); was != is {
		t.Errorf("the defaults are\n%s\nand it says\n%s", was, is)
	}
}
