package watchdog

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// calls are the system calls on a device.
type calls interface {
	open(path string) (fd int, err error)
	info(fd int) (options uint32, identity string, err error)
	setTimeout(fd, seconds int) error
	timeout(fd int) (seconds int, err error)
	keepAlive(fd int) error
	write(fd int, text string) error
	close(fd int) error
	// fixed reports whether nothing can take the device off once it was opened: the driver's module parameter nowayout.
	fixed(path string) bool
}

// device is an open device, which counts from its opening on.
type device struct {
	calls
	fd   int
	path string
}

// openDevice opens a device and looks whether it resets the machine within the timeout.
func openDevice(c calls, path string, timeout time.Duration) (_ armed, err error) {
	fd, err := c.open(path)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fault.New(fault.Conflict, "another program feeds it: switch systemd's RuntimeWatchdogSec= or the watchdog daemon off, or set watchdog-device to another device")
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return nil, fault.New(fault.NotFound, "there is no such device: load the board's driver (iTCO_wdt, sp5100_tco, ipmi_watchdog) or softdog")
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return nil, fault.New(fault.Denied, "it cannot be opened: run godwit as root, or set watchdog-device to \"\"")
	case err != nil:
		return nil, fault.New(fault.Unavailable, "open: %w", err)
	}
	d := &device{c, fd, path}
	if err := d.fit(timeout); err != nil {
		return nil, errors.Join(err, d.disarm())
	}
	return d, nil
}

// fit sets the device to the timeout and accepts one that resets the machine within it, even if this process is killed.
func (d *device) fit(timeout time.Duration) error {
	options, identity, err := d.info(d.fd)
	if err != nil {
		return fault.New(fault.Incompatible, "it does not say what it can: %w", err)
	}
	if options&unix.WDIOF_ALARMONLY != 0 {
		return fault.New(fault.Incompatible, "%s only raises an alarm, it resets nothing", identity)
	}
	// Without magic close the kernel takes it off when the process that has it open ends, by whatever death (watchdog_dev.c, watchdog_release).
	if options&unix.WDIOF_MAGICCLOSE == 0 && !d.fixed(d.path) {
		return fault.New(fault.Incompatible, "%s would be taken off when godwit is killed: it has no magic close; load its driver with nowayout=1, or use softdog", identity)
	}
	seconds := int(timeout / time.Second) // the device counts seconds: rounded down, it fires early rather than late
	if err := d.setTimeout(d.fd, seconds); err != nil {
		return fault.New(fault.Incompatible, "%s does not take a timeout of %ds: raise authority.watchdog and the times after it, or use softdog: %w", identity, seconds, err)
	}
	// The driver may have rounded to what its hardware can.
	got, err := d.timeout(d.fd)
	if err != nil {
		return fault.New(fault.Incompatible, "%s does not say its timeout: %w", identity, err)
	}
	if got < 1 || got > seconds {
		return fault.New(fault.Incompatible, "%s was set to %ds and takes %ds: raise authority.watchdog and the times after it, or use softdog", identity, seconds, got)
	}
	return d.feed()
}

func (d *device) feed() error {
	if err := d.keepAlive(d.fd); err != nil {
		return fault.New(fault.Unavailable, "feed: %w", err)
	}
	return nil
}

// disarm writes the magic character and closes the device.
func (d *device) disarm() error {
	err := d.write(d.fd, "V")
	err = errors.Join(err, d.close(d.fd))
	if err != nil {
		return fault.New(fault.Unavailable, "disarm: %w", err)
	}
	if d.fixed(d.path) {
		return fault.New(fault.Incompatible, "its driver was loaded with nowayout: it resets this machine unless godwit runs again in time")
	}
	return nil
}
