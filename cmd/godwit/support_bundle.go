package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/bundle"
	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newSupportBundle() *cobra.Command {
	var output string
	var logs []string
	cmd := &cobra.Command{
		Use: "support-bundle", Short: "Collect what is needed to understand this host from afar", Args: cobra.NoArgs,
		Long: `Support-bundle writes one tar.gz: versions, the configuration with its sources, host.json, logs, the run
directory, QEMU's logs and command lines, journals, the store's records, doctor's findings, and facts of
network, mounts, cgroups and kernel. It works without an agent too. Whatever cannot be had, or takes longer
than 15 seconds, is a line in the archive's manifest.json, which is its first file. Private keys, tokens,
passwords and the guests' user data are taken out; host names, addresses and names of VMs are not.`,
		Example: "  godwit support-bundle --output host-1.tar.gz --log /var/log/godwit.log",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := &supportBundle{cmd: cmd, logs: logs, secrets: new(bundle.Redactor)}
			b.host, _ = os.Hostname() // a bundle without one is a bundle
			b.read()
			made := time.Now().UTC().Truncate(time.Second)
			name := fmt.Sprintf("godwit-support-%s-%s", b.host, made.Format("20060102-150405"))
			if output == "" {
				output = name + ".tar.gz"
			}
			manifest, err := b.write(output, name, made)
			if err != nil {
				return err
			}
			failed := 0
			for _, e := range manifest.Items {
				if e.Error != "" {
					failed++
					if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "not there, or not whole: %s: %s\n", e.Name, e.Error); err != nil {
						return err
					}
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d items, %d of them not whole; look into it before you send it\n", output, len(manifest.Items), failed)
			return err
		},
	}
	settingFlags(cmd, false)
	cmd.Flags().StringVar(&output, "output", "", "file to write, which must not be there; empty: godwit-support-HOST-TIME.tar.gz in this folder")
	cmd.Flags().StringArrayVar(&logs, "log", nil, "log file of godwit run, beside the systemd journal; repeatable")
	return cmd
}

// supportBundle is a bundle in the making.
type supportBundle struct {
	cmd     *cobra.Command
	host    string
	logs    []string
	set     *config.Config
	state   *hostConfig // without a name on a machine that is no host
	broken  error       // of the configuration
	secrets *bundle.Redactor
}

// read finds out what host this is. Configuration or state that cannot be read is something to report, not to fail at.
func (b *supportBundle) read() {
	if b.set, b.broken = settings(b.cmd); b.broken != nil {
		in, err := settingInput(b.cmd)
		if err == nil {
			in.File = ""
			b.set, err = config.Resolve(in) // flags and environment alone
		}
		if err != nil {
			b.set, _ = config.Resolve(config.Input{}) // the defaults are right
		}
	}
	state, err := loadConfig(b.set.Data)
	if err != nil {
		b.broken = errors.Join(b.broken, err)
		b.state = &hostConfig{dir: b.set.Data}
	} else {
		b.state, b.host = state, string(state.Host)
		if under, err := b.set.Under(state.told()); err == nil {
			b.set = under
		}
	}
	keys, _ := filepath.Glob(filepath.Join(b.set.Data, "pki", "*.key")) // the pattern is well formed
	for _, path := range keys {
		if text, err := os.ReadFile(path); err == nil {
			b.secrets.Know(text)
		}
	}
}

// write makes the file, whole or not at all, readable for its owner only.
func (b *supportBundle) write(output, name string, made time.Time) (m bundle.Manifest, err error) {
	file, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return m, fault.New(fault.Exists, "%s is there already: name another file with --output", output)
	}
	if err != nil {
		return m, fault.New(fault.Invalid, "%s: %w: name another file with --output", output, errors.Unwrap(err))
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			_ = os.Remove(output) // err says what matters
		}
	}()
	head := bundle.Manifest{Made: made, Version: version, Host: b.host, Items: []bundle.Entry{}}
	return bundle.Write(b.cmd.Context(), io.Writer(file), name, head, b.secrets, b.items())
}
