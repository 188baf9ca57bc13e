package peer

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// paceShare is the part of a network card's speed that one stream may take, in percent. The rest is for what must not wait behind it:
// renewals of authority, the store's own traffic, API calls. They have sockets of their own, but the card's queue is one.
const paceShare = 90

// paceStream keeps the kernel from sending a stream faster than paceShare of the card that it leaves by (SO_MAX_PACING_RATE, socket(7);
// TCP paces by itself since Linux 4.13, whatever the queueing discipline). A card that does not say how fast it is, the loopback
// interface, say, is not paced.
func paceStream(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	bits := cardSpeed("/sys/class/net", interfaceOf(local.IP))
	if bits == 0 {
		return
	}
	pace(tcp, bits/8*paceShare/100)
}

// pace limits what the kernel sends, in bytes a second. A kernel that does not take the limit sends as fast as it can.
func pace(conn *net.TCPConn, rate uint64) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate)
	})
}

// interfaceOf returns the name of the interface that has the address, "" when none does any more.
func interfaceOf(ip net.IP) string {
	all, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range all {
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
				return i.Name
			}
		}
	}
	return ""
}

// cardSpeed returns the interface's speed in bits a second as the kernel has it below sys, 0 when it does not know one. A bridge has
// the speed of its fastest port.
func cardSpeed(sys, name string) uint64 {
	if name == "" {
		return 0
	}
	text, err := os.ReadFile(filepath.Join(sys, name, "speed"))
	if err != nil {
		return 0 // the loopback interface, and a card that is down, have none to read
	}
	megabits, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || megabits <= 0 {
		return 0
	}
	return uint64(megabits) * 1_000_000
}
