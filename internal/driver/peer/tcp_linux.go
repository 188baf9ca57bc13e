package peer

import (
	"net"
	"os"
	"strconv"
	"strings"
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

// The bounds of what a stream holds on its way. Whoever stops a guest waits until all of it has been read at the other side, and the
// kernel would let it grow to many megabytes where that side is the slower one.
const (
	// streamReceiveMax is also the most that can be on the network at once: 10 GbE fills it at a round trip of 1.6 ms. The kernel
	// doubles it for its own book-keeping (socket(7)).
	streamReceiveMax = 2 << 20
	// streamUnsentMax is how much may wait to be sent before the writer has to (tcp(7), TCP_NOTSENT_LOWAT).
	streamUnsentMax = 256 << 10
)

// boundStream sets these bounds at one end. A kernel that does not take one of them keeps its own.
func boundStream(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, streamUnsentMax)
		// The kernel's general limit may be a tenth of it, which would be too little for a fast network; root may pass it.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, streamReceiveMax) == nil {
			return
		}
		if most, err := receiveLimit(); err == nil && most >= streamReceiveMax {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, streamReceiveMax)
		}
	})
}

// receiveLimit returns the largest receive buffer that a process without privileges can ask for.
func receiveLimit() (int, error) {
	text, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
