package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var rewrite = flag.Bool("rewrite", false, "write the manual as the commands describe themselves now; review it as prose")

// docs is where the manual and the other pages are, seen from this folder.
const docs = "../../docs"

// TestManual keeps docs/cli.md equal to what the commands say of themselves: help is the manual.
func TestManual(t *testing.T) {
	path := filepath.Join(docs, "cli.md")
	now := manual(newRoot())
	if *rewrite {
		if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: write it with go test ./cmd/godwit -run TestManual -rewrite", err)
	}
	if string(written) != now {
		t.Errorf("%s differs from what the commands say: run go test ./cmd/godwit -run TestManual -rewrite and review the change", path)
	}
}

// TestEveryCommandExplainsItself finds commands and flags that a reader of the manual would have to guess.
func TestEveryCommandExplainsItself(t *testing.T) {
	root := newRoot()
	walk(root, func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no Short: say in one line what it does", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its Short ends with a dot: the others do not", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no usage: say what it does", c.CommandPath(), f.Name)
			}
		})
		if c.Runnable() && !c.HasSubCommands() && c.Args == nil {
			t.Errorf("%s takes any argument: set Args", c.CommandPath())
		}
	})
}

// TestPagesShowCommandsThatExist reads every godwit command line in the fenced blocks of README and docs as the program would.
func TestPagesShowCommandsThatExist(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(docs, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md")
	read := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range commandLines(string(text)) {
			if err := parses(line); err != nil {
				t.Errorf("%s shows %q, which the program does not take: %v", filepath.Base(page), line, err)
			}
			read++
		}
	}
	if read == 0 {
		t.Error("no page shows a godwit command: this test looks for the wrong lines")
	}
}

func TestCommandLinesThatDoNotExistAreFound(t *testing.T) {
	for _, line := range []string{
		"godwit vm fly web-1", "godwit vm migrate web-1 --onto host-2", "godwit vm start", "godwit vm", "godwit vm create a --cpus many",
	} {
		if parses(line) == nil {
			t.Errorf("%q was taken", line)
		}
	}
	if got := commandLines("```\ngodwit vm ls && godwit host ls > hosts\n```\n"); len(got) != 2 || got[1] != "godwit host ls" {
		t.Errorf("found %q", got)
	}
	if got := commandLines("```\n  sudo bin/godwit host ls   # all\nexport A=1\n```\ngodwit prose\n"); len(got) != 1 || got[0] != "godwit host ls" {
		t.Errorf("found %q", got)
	}
}

// commandLines returns the lines of fenced blocks that call godwit, without prompt, sudo, path and comment.
func commandLines(page string) []string {
	var found []string
	fenced := false
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		line, _, _ = strings.Cut(line, " #")
		for command := range strings.SplitSeq(line, "&&") {
			command, _, _ = strings.Cut(command, " > ") // the shell's
			command = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(command), "sudo "), "bin/")
			if fenced && strings.HasPrefix(command, "godwit ") && !strings.ContainsAny(command, "[]<>") && !strings.HasPrefix(command, "godwit NOUN") {
				found = append(found, strings.TrimSuffix(strings.TrimSuffix(command, "&"), " "))
			}
		}
	}
	return found
}

// parses reads one command line as the program would, and runs nothing.
func parses(line string) error {
	words := strings.Fields(line)[1:]
	cmd, rest, err := newRoot().Find(words)
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() {
		return fmt.Errorf("%s wants a verb", cmd.CommandPath())
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// walk visits every command that is not hidden, parents first, in the order of the help.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	if c.Hidden || c.Name() == "help" {
		return
	}
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

// manual renders the whole command line as one page.
func manual(root *cobra.Command) string {
	var b strings.Builder
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format, args...) } // a Builder does not fail
	p("# The command line\n\n")
	p("<!-- Made by go test ./cmd/godwit -run TestManual -rewrite from what the commands say of themselves; not edited by hand. -->\n\n")
	p("```\n%s\n```\n\n", strings.TrimSpace(root.Long))
	p("## Exit codes\n\nThey do not change; scripts may rely on them.\n\n| code | meaning |\n|---|---|\n")
	for _, c := range exitCodes {
		p("| %d | %s |\n", c.code, c.meaning)
	}
	p("\nAn error is one line on standard error, or a line per reason when there are several.\n\n")
	p("## Flags of every command\n\n")
	flags(&b, root.PersistentFlags())
	p("`--json` counts for every command that reads or returns an object; `store dump` prints JSON always.\n")
	p("`GODWIT_DEBUG=1` in the environment of `godwit run` makes it log its single steps.\n\n")
	p("## Commands\n\n| command | |\n|---|---|\n")
	walk(root, func(c *cobra.Command) {
		if !c.HasSubCommands() {
			p("| [`%s`](#%s) | %s |\n", c.CommandPath(), anchor(c), c.Short)
		}
	})
	p("\n")
	walk(root, func(c *cobra.Command) {
		if c.HasSubCommands() {
			return
		}
		p("### %s\n\n", c.CommandPath())
		if c.Long != "" {
			p("%s\n\n", strings.TrimSpace(c.Long))
		} else {
			p("%s.\n\n", c.Short)
		}
		c.DisableFlagsInUseLine = true
		p("    %s\n\n", c.UseLine())
		if c.Example != "" {
			p("```\n%s\n```\n\n", c.Example)
		}
		flags(&b, c.LocalNonPersistentFlags())
	})
	return strings.TrimSpace(b.String()) + "\n"
}

// exitCodes are the constants of main.go with their meaning.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{exitOK, "done"},
	{exitInternal, "internal error: a bug, or an error of a kind that nobody foresaw"},
	{exitUsage, "the command line is wrong, or a value in it is malformed"},
	{exitNotFound, "a named object does not exist"},
	{exitConflict, "the object exists already, or its state forbids the request now"},
	{exitRefused, "refused, with every reason: the two sides do not fit, something is not allowed, or something runs out"},
	{exitUnavailable, "a host, the store or QEMU does not answer, or a guest did not do what it was asked in time"},
	{exitCanceled, "canceled"},
}

// flags renders a table of flags with their environment variables; nothing for none.
func flags(b *strings.Builder, set *pflag.FlagSet) {
	rows := ""
	set.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		value := f.DefValue
		switch {
		case f.Name == "name":
			value = "the machine's own name" // differs from machine to machine
		case value == "[]" || value == "" || value == "false" || value == "0s":
			value = ""
		default:
			value = "`" + value + "`"
		}
		name := "--" + f.Name
		if kind != "" {
			name += " " + kind
		}
		rows += fmt.Sprintf("| `%s` | %s | %s | `%s` |\n", name, escape(usage), value, environment(f.Name))
	})
	if rows != "" {
		_, _ = fmt.Fprintf(b, "| flag | | default | environment |\n|---|---|---|---|\n%s\n", rows) // a Builder does not fail
	}
}

func escape(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

func anchor(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func environment(name string) string {
	return "GODWIT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
