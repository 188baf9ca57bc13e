package host

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Alarm rings at a moment of Boottime. A machine that was suspended over that moment rings at its first instant awake, where
// package time would count the rest of the wait from there (timerfd_create(2), CLOCK_BOOTTIME).
type Alarm struct {
	// C gets a value at each ring; one that nobody has taken yet stands for those after it.
	C <-chan struct{}

	file *os.File
}

// NewAlarm returns an alarm that is not set. Close it.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fault.New(fault.NoResources, "alarm: %w", err)
	}
	rings := make(chan struct{}, 1)
	a := &Alarm{C: rings, file: os.NewFile(uintptr(fd), "alarm")}
	go func() { // ends with Close
		count := make([]byte, 8)
		for {
			if _, err := a.file.Read(count); err != nil {
				return
			}
			select {
			case rings <- struct{}{}:
			default:
			}
		}
	}()
	return a, nil
}

// Set has the alarm ring once, at the moment, or right away when that has passed. It takes the place of what was set before; a ring
// that was on its way may still come.
func (a *Alarm) Set(at time.Duration) error {
	at = max(at, 1) // 0 would take the alarm off
	raw, err := a.file.SyscallConn()
	if err != nil {
		return fault.New(fault.Internal, "alarm: %w", err)
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(at))}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil)
	}); err != nil {
		set = err
	}
	if set != nil {
		return fault.New(fault.Internal, "alarm: %w", set)
	}
	return nil
}

// Close takes the alarm off.
func (a *Alarm) Close() error { return a.file.Close() }
