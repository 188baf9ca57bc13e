// Package host is what the warden and the agent ask of the machine that they run on: its clock that counts suspended time too, which boot
// it is in, and the cgroups of its VMs, read, frozen and killed. It starts nothing and decides nothing.
package host

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Boottime returns the moment of this machine's CLOCK_BOOTTIME: the time since its boot, suspended time counted too (clock_gettime(2)). It
// means nothing on another machine, and nothing in another boot.
func Boottime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic("host: CLOCK_BOOTTIME: " + err.Error()) // every kernel since 2.6.39 has it, and nobody is safe without
	}
	return time.Duration(now.Nano())
}

// bootIDFile is where the kernel says which boot it is in (random(4)).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// BootID returns the kernel's name for this boot.
func BootID() (string, error) {
	text, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", fault.New(fault.Internal, "boot id: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
