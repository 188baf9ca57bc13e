package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/systemd"
	"github.com/godwit-vm/godwit/internal/fault"
)

// configHead opens the configuration that install writes where there is none. Below it stands every setting with its default, as a
// comment.
const configHead = `# Settings of this Godwit host, in TOML. Nothing is set yet: what is below, as comments, are the defaults, but for what
# godwit init or godwit join were told. godwit config check reads this file, godwit config show says what counts.
`

// configText is a configuration that sets nothing and shows everything.
func configText() string {
	var text strings.Builder
	text.WriteString(configHead)
	table := ""
	for _, s := range config.Settings() {
		name := s.Key
		if in, key, ok := strings.Cut(s.Key, "."); ok {
			if in != table {
				fmt.Fprintf(&text, "\n[%s]\n", in)
				table = in
			}
			name = key
		}
		fmt.Fprintf(&text, "\n# %s\n# %s = %s\n", s.Usage, name, s.TOML())
	}
	return text.String()
}

// installFlags are what install asks.
type installFlags struct {
	root, binary, data, run string
	start                   bool
}

func newInstall() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use: "install", Short: "Make this host run Godwit as a service of systemd", Args: cobra.NoArgs,
		Long: `Install writes a unit for systemd, the user that VMs run as, the folder for sockets and, where there is none, a
configuration file without settings. It says each file that it writes, notes them for "godwit uninstall", and
may be repeated; it overwrites no file that is not its own or that somebody has changed. The binary stays
where it is: only root may be able to change it.

With --root it writes below that folder, for an image of a host, and runs nothing.`,
		Example: "  godwit install --start",
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.install(cmd.Context(), cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&f.root, "root", "/", "root folder of the host")
	cmd.Flags().StringVar(&f.binary, "binary", "", "the godwit that the service runs, as a path on the host; empty: this one")
	cmd.Flags().StringVar(&f.data, "data", defaultData, "data folder of the host")
	cmd.Flags().StringVar(&f.run, "run", defaultRun, "folder for sockets and journals, on tmpfs")
	cmd.Flags().BoolVar(&f.start, "start", false, "start the service now and at every boot")
	return cmd
}

func (f *installFlags) here() bool { return filepath.Clean(f.root) == "/" }

// check returns every reason against the installation.
func (f *installFlags) check() error {
	var bad []string
	note := func(err error) {
		if err != nil {
			bad = append(bad, fault.Reasons(err)...)
		}
	}
	kind := fault.Denied
	if !filepath.IsAbs(f.root) {
		kind = fault.Invalid
		bad = append(bad, fmt.Sprintf("root %q is no absolute path", f.root))
	} else if _, err := os.Stat(f.root); err != nil {
		kind = fault.NotFound
		bad = append(bad, err.Error()+": make the folder first")
	}
	if f.start && !f.here() {
		kind = fault.Invalid
		bad = append(bad, "with --root nothing can be started: leave out --start")
	}
	if f.here() && os.Geteuid() != 0 {
		bad = append(bad, "it writes to /etc: run it as root")
	}
	if path := f.binaryHere(); f.here() || f.binary == "" {
		note(systemd.CheckBinary(path))
	} else if path = filepath.Join(f.root, path); exists(path) { // an image may get its binary later
		note(systemd.CheckBinary(path))
	}
	if f.start && f.here() {
		if why := systemd.Missing(); why != "" {
			bad = append(bad, why+": install without --start, and run godwit run by other means")
		}
		if _, err := loadConfig(f.data); err != nil {
			bad = append(bad, err.Error())
		}
	}
	return fault.Refuse(kind, bad)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// binaryHere is the binary to look at on this machine.
func (f *installFlags) binaryHere() string {
	if f.binary != "" {
		return f.binary
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "/proc/self/exe" // the check says what is wrong with it
	}
	return self
}

func (f *installFlags) install(ctx context.Context, out io.Writer) error {
	if err := f.check(); err != nil {
		return err
	}
	s := systemd.Service{Binary: f.binaryHere(), Places: systemd.Places{Data: f.data, Run: f.run}, User: defaultUser}
	if f.data != defaultData {
		s.Args = append(s.Args, "--data", f.data)
	}
	if f.run != defaultRun {
		s.Args = append(s.Args, "--run", f.run)
	}
	files, err := s.Files()
	if err != nil {
		return err
	}
	files = append(files, systemd.File{Path: config.DefaultFile, Text: configText(), Keep: true})
	setup, err := systemd.Open(f.root)
	if err != nil {
		return err
	}
	written, err := setup.Install(files, s.Places)
	for _, path := range written {
		if _, err := fmt.Fprintln(out, "wrote", path); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if len(written) == 0 {
		if _, err := fmt.Fprintln(out, "everything is there already"); err != nil {
			return err
		}
	}
	if !f.here() {
		return nil
	}
	return f.apply(ctx, setup, s.User, out)
}

// apply makes the files count on this host.
func (f *installFlags) apply(ctx context.Context, setup *systemd.Setup, user string, out io.Writer) error {
	if _, err := qemu.LookupUser(user); fault.Is(err, fault.NotFound) {
		if err := systemd.MakeUser(ctx); err != nil {
			return err
		}
		if err := setup.NoteUser(user); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, "made user", user); err != nil {
			return err
		}
	}
	if why := systemd.Missing(); why != "" {
		_, err := fmt.Fprintf(out, "%s: the files wait for it; until then, run %s run by other means\n", why, f.binaryHere())
		return err
	}
	if err := systemd.MakeFolders(ctx); err != nil {
		return err
	}
	if err := systemd.Reload(ctx); err != nil {
		return err
	}
	if !f.start {
		_, err := fmt.Fprintln(out, "start it with: systemctl enable --now godwit")
		return err
	}
	if err := systemd.Start(ctx); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "started; see systemctl status godwit")
	return err
}
