package watchdog

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernel makes the real system calls (watchdog-api.rst). None of them waits for more than the device.
type kernel struct{}

func (kernel) open(path string) (int, error) {
	return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
}

func (kernel) info(fd int) (options uint32, identity string, err error) {
	i, err := unix.IoctlGetWatchdogInfo(fd)
	if err != nil {
		return 0, "", err
	}
	name, _, _ := bytes.Cut(i.Identity[:], []byte{0})
	return i.Options, string(name), nil
}

func (kernel) setTimeout(fd, seconds int) error {
	return unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, seconds)
}

func (kernel) timeout(fd int) (int, error)     { return unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT) }
func (kernel) keepAlive(fd int) error          { return unix.IoctlWatchdogKeepalive(fd) }
func (kernel) close(fd int) error              { return unix.Close(fd) }
func (kernel) write(fd int, text string) error { _, err := unix.Write(fd, []byte(text)); return err }

func (kernel) fixed(path string) bool { return About("/", path).Fixed }

// Facts is what the kernel says of a watchdog without opening it, which would arm it (Documentation/ABI/testing/sysfs-class-watchdog).
type Facts struct {
	There    bool
	Identity string // of the hardware or driver; "" where the kernel does not say
	Fixed    bool   // once opened it cannot be taken off: its driver was loaded with nowayout
	InUse    bool   // a program has it open, or it counts since such a program ended
	Fired    bool   // the machine's last reset was this watchdog's
}

// About reads what a root file system says of a watchdog device.
func About(root, path string) Facts {
	info, err := os.Stat(filepath.Join(root, path))
	if err != nil {
		return Facts{}
	}
	f := Facts{There: info.Mode()&os.ModeCharDevice != 0 || root != "/"}
	name := filepath.Base(path)
	if name == filepath.Base(Device) {
		name += "0" // the first one has two names
	}
	read := func(file string) string {
		text, err := os.ReadFile(filepath.Join(root, "sys/class/watchdog", name, file))
		if err != nil {
			return "" // a kernel without CONFIG_WATCHDOG_SYSFS
		}
		return strings.TrimSpace(string(text))
	}
	f.Identity, f.Fixed, f.InUse = read("identity"), read("nowayout") == "1", read("state") == "active"
	boot, err := strconv.ParseUint(read("bootstatus"), 10, 32)
	f.Fired = err == nil && boot&unix.WDIOF_CARDRESET != 0
	return f
}
