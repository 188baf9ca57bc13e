package watchdog

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// A watchdog behind a socket is a process outside of the host that ends all of the host's processes when it was not fed. Each message is one of
//
//	arm MILLISECONDS MOMENT    it is answered with "armed", and counts from then on
//	feed MOMENT
//	disarm                     it is answered with "off"
//
// over a SOCK_SEQPACKET socket. MOMENT is of CLOCK_BOOTTIME in nanoseconds, taken before the message was sent: the watchdog counts from there,
// however late it reads. The end of the connection changes nothing: it goes on counting.
const (
	sayArm    = "arm"
	sayFeed   = "feed"
	sayDisarm = "disarm"
	tellArmed = "armed"
	tellOff   = "off"
)

// answerMax bounds the wait for the watchdog's answer.
const answerMax = time.Second

type socket struct {
	fd  int
	now func() time.Duration
}

func openSocket(path string, timeout time.Duration) (armed, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.NoResources, "socket: %w", err)
	}
	s := &socket{fd, boottime}
	limit := unix.NsecToTimeval(int64(answerMax))
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = s.ask(fmt.Sprintf("%s %d %d", sayArm, timeout.Milliseconds(), s.now()), tellArmed)
	}
	if err != nil {
		_ = unix.Close(fd) // nothing was said, or nobody hears
		return nil, fault.New(fault.Unavailable, "nobody answers: %w", err)
	}
	return s, nil
}

func (s *socket) ask(text, want string) error {
	if err := unix.Send(s.fd, []byte(text), unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	answer := make([]byte, len(want)+1)
	n, err := unix.Read(s.fd, answer)
	if err == nil && string(answer[:n]) != want {
		err = fmt.Errorf("it says %q", answer[:n])
	}
	return err
}

func (s *socket) feed() error {
	// A watchdog that reads nothing any more is not waited for: it will not fire either.
	err := unix.Send(s.fd, fmt.Appendf(nil, "%s %d", sayFeed, s.now()), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil {
		return fault.New(fault.Unavailable, "feed: %w", err)
	}
	return nil
}

func (s *socket) disarm() error {
	err := s.ask(sayDisarm, tellOff)
	if err = errors.Join(err, unix.Close(s.fd)); err != nil {
		return fault.New(fault.Unavailable, "disarm: %w", err)
	}
	return nil
}

func boottime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0 // long ago: the watchdog fires at once
	}
	return time.Duration(now.Nano())
}
