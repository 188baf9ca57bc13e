package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Check resolves the input and looks whether what it names is there on this machine: folders, the QEMU binary, the user, the
// group, bridges and interfaces. It returns every problem at once, as Resolve does.
func Check(in Input) (*Config, error) {
	c, bad := resolve(in)
	look := func(key string, err error) {
		if v := c.values[key]; err != nil && v.From != Default { // a default that is missing here is made, or said when it is used
			bad = append(bad, problem{file: v.Where, err: fmt.Errorf("%s: %w", key, err)})
		}
	}
	for _, key := range []string{"data", "run", "probe-cache"} {
		look(key, folderThere(c.values[key].Text))
	}
	if c.Binary != "" {
		_, err := exec.LookPath(c.Binary)
		look("qemu", tellPath(err))
	}
	if c.User != "" {
		if _, err := user.Lookup(c.User); err != nil {
			look("user", fmt.Errorf("this machine has no user %q: make it with useradd --system %s", c.User, c.User))
		}
	}
	if c.SocketGroup != "" {
		if _, err := user.LookupGroup(c.SocketGroup); err != nil {
			look("socket-group", fmt.Errorf("this machine has no group %q: make it with groupadd --system %s", c.SocketGroup, c.SocketGroup))
		}
	}
	if c.Watchdog != "" && !strings.HasPrefix(c.Watchdog, "unix:") {
		_, err := os.Stat(c.Watchdog)
		look("watchdog-device", tellPath(err))
	}
	for name, n := range c.Networks {
		look("networks."+name+".bridge", linkThere(n.Bridge, "bridge"))
		look("networks."+name+".uplink", linkThere(n.Uplink, ""))
	}
	return c, fault.Refuse(fault.Invalid, texts(bad))
}

// folderThere accepts a folder, and one that can be made since its parent is there.
func folderThere(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is no folder", path)
	case !errors.Is(err, fs.ErrNotExist):
		return tellPath(err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return fmt.Errorf("neither %s nor the folder it would be in is there", path)
	}
	return nil
}

// linkThere looks for a network interface, below whose folder in sysfs there must be want.
func linkThere(name, want string) error {
	if name == "" {
		return nil
	}
	dir := filepath.Join("/sys/class/net", name)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("this machine has no network interface %q: see ip link", name)
	}
	if _, err := os.Stat(filepath.Join(dir, want)); err != nil {
		return fmt.Errorf("%q is no bridge: see ip link show type bridge, or name it as uplink", name)
	}
	return nil
}

// tellPath returns the error with its path, without the name of the system call.
func tellPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", p.Path, p.Err)
	}
	if p, ok := errors.AsType[*exec.Error](err); ok {
		return fmt.Errorf("%s: %w", p.Name, p.Err)
	}
	return err
}
