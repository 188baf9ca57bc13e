package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/procfs"
	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/systemd"
	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newUninstall() *cobra.Command {
	var root string
	var purge bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take away what install wrote, and leave the host as it was", Args: cobra.NoArgs,
		Long: `Uninstall stops the service and removes what "godwit install" wrote and the bridges that Godwit made over uplinks, and
nothing else. It refuses while VMs run here: migrate or stop them first. A configuration file that was changed, the data folder and the folder for
sockets and journals stay; a later install goes on with them.

With --purge these go as well, and the user that install made: this host has then left its cluster, and needs
"godwit join" to be in one again. Datastores and their images are never touched; images keep the number of
the user that they belonged to.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return uninstall(cmd.Context(), cmd.OutOrStdout(), root, purge)
		},
	}
	cmd.Flags().StringVar(&root, "root", "/", "root folder of the host")
	cmd.Flags().BoolVar(&purge, "purge", false, "also remove configuration, data folder, sockets, journals and the cache of probes")
	return cmd
}

func uninstall(ctx context.Context, out io.Writer, root string, purge bool) error {
	setup, err := systemd.Open(root)
	if err != nil {
		return err
	}
	if !setup.Installed() {
		return fault.New(fault.NotFound, "nothing is installed below %s", root)
	}
	at := func(path string) string { return filepath.Join(root, path) }
	places := setup.Places()
	here := filepath.Clean(root) == "/"
	if err := mayUninstall(at, places, here, purge); err != nil {
		return err
	}
	managed := here && systemd.Missing() == ""
	if managed {
		if err := systemd.Stop(ctx); err != nil {
			return err
		}
		// A VM may have been started between the question and the stop; now nobody can start one.
		if err := mayUninstall(at, places, here, purge); err != nil {
			return errors.Join(err, systemd.Start(ctx))
		}
	}
	if here { // the bridges that the agent made over uplinks; no VM is left that could be on one
		if err := bridge.Sweep(places.Run, nil); err != nil {
			return err
		}
	}
	user := setup.MadeUser()
	removed, kept, err := setup.Uninstall(purge)
	if err == nil && managed {
		err = systemd.Reload(ctx)
	}
	for _, dir := range []string{places.Data, places.Run, defaultCache} {
		if _, statErr := os.Lstat(at(dir)); err != nil || statErr != nil {
			continue
		}
		if !purge {
			kept = append(kept, at(dir))
			continue
		}
		if err = os.RemoveAll(at(dir)); err == nil {
			removed = append(removed, at(dir))
		}
	}
	if err == nil && purge && here && user != "" {
		if err = systemd.RemoveUser(ctx, user); err == nil {
			removed = append(removed, "user "+user)
		}
	}
	for _, path := range removed {
		if _, err := fmt.Fprintln(out, "removed", path); err != nil {
			return err
		}
	}
	for _, path := range kept {
		if _, err := fmt.Fprintln(out, "kept", path); err != nil {
			return err
		}
	}
	return err
}

// mayUninstall returns every reason against it: a VM that runs, a godwit that systemd would not stop, and for a purge what must not
// be removed.
func mayUninstall(at func(string) string, places systemd.Places, here, purge bool) error {
	var bad []string
	if here && os.Geteuid() != 0 {
		bad = append(bad, "it removes files from /etc: run it as root")
	}
	vms, err := qemu.ListRunning(at(filepath.Join(places.Run, "vms")))
	if err != nil {
		bad = append(bad, err.Error())
	}
	for _, vm := range vms {
		bad = append(bad, fmt.Sprintf("vm %s (%s) runs here as process %d: migrate or stop it", vm.Name, vm.ID, vm.PID))
	}
	if !here || systemd.Missing() != "" {
		holder, err := warden.Holder(at(places.Run))
		if err != nil {
			bad = append(bad, err.Error())
		} else if holder != "" {
			bad = append(bad, fmt.Sprintf("godwit run is process %s, which systemd does not know: end it", holder))
		}
	}
	if purge {
		bad = append(bad, mayPurge(at, places)...)
	}
	return fault.Refuse(fault.Conflict, bad)
}

// mayPurge returns what must not be removed with the folders.
func mayPurge(at func(string) string, places systemd.Places) []string {
	var bad []string
	c, err := loadConfig(at(places.Data))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return []string{err.Error()}
	}
	for _, dir := range []string{places.Data, places.Run, defaultCache} {
		dir = at(dir)
		if err := ours(dir); err != nil {
			bad = append(bad, err.Error())
		}
		if c == nil {
			continue
		}
		for _, d := range c.Datastores {
			if inside(at(d.Path), dir) {
				bad = append(bad, fmt.Sprintf("datastore %s is in %s: move it elsewhere, images are never removed", d.Name, dir))
			}
		}
	}
	return bad
}

// ours refuses to remove a folder that is not Godwit's alone, as far as its name and its mounts tell.
func ours(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !strings.HasPrefix(filepath.Base(dir), "godwit") {
		return fault.New(fault.Conflict, "%s may have files of others, by its name: remove it yourself, and run this again", dir)
	}
	mounted, err := mountsBelow(dir)
	if err == nil && len(mounted) > 0 {
		err = fault.New(fault.Conflict, "%s is mounted: unmount it", strings.Join(mounted, ", "))
	}
	return err
}

// inside reports whether the path is the folder or below it, whatever links lead there.
func inside(path, dir string) bool {
	for _, p := range []*string{&path, &dir} {
		if real, err := filepath.EvalSymlinks(*p); err == nil {
			*p = real
		}
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// mountsBelow lists the file systems that are mounted in the folder.
func mountsBelow(dir string) ([]string, error) {
	mounts, err := procfs.GetMounts()
	if err != nil {
		return nil, fault.New(fault.Internal, "mounts: %w", err)
	}
	var found []string
	for _, m := range mounts {
		if inside(m.MountPoint, dir) {
			found = append(found, m.MountPoint)
		}
	}
	return found, nil
}
