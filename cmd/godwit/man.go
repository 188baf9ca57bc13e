package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/godwit-vm/godwit/internal/fault"
)

func newMan() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write a manual page for every command into a folder",
		Long: `Man writes the manual pages of all commands, godwit.1, godwit-vm-migrate.1 and so on, into a folder, which it
makes when it is not there. Pages of the same name are replaced.`,
		Example: "  godwit man /usr/local/share/man/man1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := writeManuals(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d pages in %s\n", len(files), args[0])
			return err
		},
	}
}

// writeManuals writes a manual page for every command that is not hidden into dir, and returns the files it wrote.
func writeManuals(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for everybody to read
		return nil, fault.New(fault.NoResources, "manual pages: %w", err)
	}
	built := buildDate()
	var files []string
	var write func(*cobra.Command) error
	write = func(c *cobra.Command) error {
		if c.Hidden {
			return nil
		}
		c.DisableAutoGenTag, c.DisableFlagsInUseLine = true, true
		file := filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1")
		f, err := os.Create(file)
		if err != nil {
			return fault.New(fault.NoResources, "manual pages: %w", err)
		}
		err = doc.GenMan(c, &doc.GenManHeader{Section: "1", Date: &built, Source: "godwit " + version, Manual: "Godwit"}, f)
		if closed := f.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return fault.New(fault.NoResources, "manual page %s: %w", file, err)
		}
		files = append(files, file)
		for _, sub := range c.Commands() {
			if err := write(sub); err != nil {
				return err
			}
		}
		return nil
	}
	return files, write(newRoot())
}

// buildDate is the date of the commit that this binary was built from, so that two builds of it write the same pages; the
// day when it is not known.
func buildDate() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				if at, err := time.Parse(time.RFC3339, s.Value); err == nil {
					return at
				}
			}
		}
	}
	return time.Now()
}
