package peer

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// The times after which the kernel gives a connection up (tcp(7)).
const (
	keepaliveIdle     = 2 * time.Second
	keepaliveInterval = time.Second
	keepaliveCount    = 3
	// unackedMax is how long data may stay unacknowledged or the other side's window closed. It is long, because a target
	// QEMU that does not read for some seconds is no fault; migrations have their own watch on progress.
	unackedMax = 30 * time.Second
)

// setUserTimeout sets TCP_USER_TIMEOUT. A kernel that does not take it keeps its retransmission limit.
func setUserTimeout(conn *net.TCPConn, d time.Duration) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
