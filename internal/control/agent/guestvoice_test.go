package agent

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

func TestHeartbeatsAsGuestsSayThem(t *testing.T) {
	beat, ok := parseHeartbeat("hb 42 up=8400 boot=ab12 ip=10.10.0.2 later=word")
	if !ok || beat.Count != 42 || beat.Uptime != 8400*time.Millisecond || beat.BootID != "ab12" || beat.IP != "10.10.0.2" {
		t.Errorf("%+v %v", beat, ok)
	}
	for _, line := range []string{"", "hb", "hb x", "HB 1", "h 1 up=2", "hb -1"} {
		if _, ok := parseHeartbeat(line); ok {
			t.Errorf("%q was taken for a heartbeat", line)
		}
	}
}

// A guest is not trusted: whatever it says, nothing but plain words gets to an administrator's terminal.
func FuzzHeartbeat(f *testing.F) {
	f.Add("hb 1 up=2 boot=\x1b[2J ip=1.2.3.4")
	f.Add("hb 18446744073709551615 up=-1 ip=zz boot=" + strings.Repeat("x", 200))
	f.Fuzz(func(t *testing.T, line string) {
		beat, ok := parseHeartbeat(line)
		if !ok {
			return
		}
		if len(beat.BootID) > bootIDMax || strings.ContainsFunc(beat.BootID, func(r rune) bool { return r < '!' || r > '~' }) {
			t.Errorf("boot id %q", beat.BootID)
		}
		if beat.Uptime < 0 || beat.IP != "" && net.ParseIP(beat.IP) == nil {
			t.Errorf("%+v", beat)
		}
	})
}

// serialPort stands in for QEMU's socket: it hands out the connection of the one client that QEMU would serve.
func serialPort(t *testing.T) (path string, accept func() net.Conn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "serial.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, func() net.Conn {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// runConsole runs a console until the test ends.
func runConsole(t *testing.T, path string) *console {
	t.Helper()
	c := newConsole(path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func TestConsoleIsSharedAndRemembers(t *testing.T) {
	path, accept := serialPort(t)
	c := runConsole(t, path)
	qemu := accept()
	_, early, leaveEarly := c.watch()
	defer leaveEarly()
	if _, err := qemu.Write([]byte("login: ")); err != nil {
		t.Fatal(err)
	}
	if got := <-early; string(got) != "login: " {
		t.Fatalf("the first watcher saw %q", got)
	}
	kept, late, leaveLate := c.watch()
	defer leaveLate()
	if string(kept) != "login: " {
		t.Errorf("who came later was told %q", kept)
	}
	if err := c.write([]byte("root\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := qemu.Read(buf); err != nil || string(buf[:n]) != "root\n" {
		t.Errorf("the guest read %q, %v", buf[:n], err)
	}
	if _, err := qemu.Write([]byte("#")); err != nil {
		t.Fatal(err)
	}
	for _, w := range []<-chan []byte{early, late} {
		if got := <-w; string(got) != "#" {
			t.Errorf("a watcher saw %q", got)
		}
	}
}

func TestConsoleComesBackAfterQEMU(t *testing.T) {
	path, accept := serialPort(t)
	c := runConsole(t, path)
	accept().Close()
	qemu := accept() // it dialled again
	_, output, leave := c.watch()
	defer leave()
	if _, err := qemu.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := <-output; string(got) != "x" {
		t.Errorf("saw %q", got)
	}
}

func TestSlowWatcherIsCutAndNobodyWaits(t *testing.T) {
	c := newConsole("")
	_, slow, leave := c.watch()
	defer leave()
	for range consoleQueue + 1 {
		c.publish([]byte("."))
	}
	n := 0
	for range slow { // closed, or this would hang
		n++
	}
	if n != consoleQueue {
		t.Errorf("%d chunks before the cut", n)
	}
}

func TestConsoleKeepsTheLatest(t *testing.T) {
	c := newConsole("")
	c.publish(bytes.Repeat([]byte("a"), consoleKept))
	c.publish([]byte("the end"))
	kept, _, leave := c.watch()
	defer leave()
	if len(kept) != consoleKept || !bytes.HasSuffix(kept, []byte("athe end")) {
		t.Errorf("%d bytes kept, ending in %q", len(kept), kept[len(kept)-10:])
	}
}

func TestTypingNeedsASerialPort(t *testing.T) {
	if err := newConsole("").write([]byte("x")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
}
