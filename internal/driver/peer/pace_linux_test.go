package peer

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCardSpeed(t *testing.T) {
	sys := t.TempDir()
	for name, text := range map[string]string{"eth0": "1000\n", "down0": "-1\n", "odd0": "fast\n"} {
		if err := os.MkdirAll(filepath.Join(sys, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, name, "speed"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]uint64{"eth0": 1_000_000_000, "down0": 0, "odd0": 0, "none0": 0, "": 0} {
		if got := cardSpeed(sys, name); got != want {
			t.Errorf("%q: %d bits a second, not %d", name, got, want)
		}
	}
}

func TestInterfaceOf(t *testing.T) {
	if got := interfaceOf(net.IPv4(127, 0, 0, 1)); got != "lo" {
		t.Errorf("127.0.0.1 is on %q", got)
	}
	if got := interfaceOf(net.IPv4(192, 0, 2, 99)); got != "" {
		t.Errorf("an address of nobody is on %q", got)
	}
}

func TestPaceIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", conn)
	}
	pace(tcp, 112_500_000)
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got uint64
	if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if got != 112_500_000 {
		t.Errorf("the kernel paces at %d bytes a second", got)
	}
}
