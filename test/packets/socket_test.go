package packets

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// forceBuffer gives the socket a receive buffer beyond what users may ask for.
func forceBuffer(conn net.Conn, size int) error {
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) })
	return errors.Join(err, set)
}

// refused reports whether the guest's kernel had no socket there: it has none before its run begins.
func refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }
