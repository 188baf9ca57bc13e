package watchdog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// board is a watchdog's driver and hardware.
type board struct {
	options     uint32
	least, most int // seconds that it can be set to; it rounds up to least
	nowayout    bool
	openErr     error
	infoErr     error

	counts  bool // armed
	seconds int
	fed     int
	magic   bool
	closed  bool
}

func (b *board) open(string) (int, error) {
	if b.openErr != nil {
		return -1, b.openErr
	}
	b.counts, b.seconds = true, 60
	return 3, nil
}
func (b *board) info(int) (uint32, string, error) { return b.options, "testdog", b.infoErr }
func (b *board) setTimeout(_, seconds int) error {
	if seconds > b.most {
		return unix.EINVAL
	}
	b.seconds = max(seconds, b.least)
	return nil
}
func (b *board) timeout(int) (int, error) { return b.seconds, nil }
func (b *board) keepAlive(int) error      { b.fed++; return nil }
func (b *board) write(_ int, text string) error {
	b.magic = text == "V"
	return nil
}

func (b *board) close(int) error {
	b.closed = true
	if !b.nowayout && (b.magic || b.options&unix.WDIOF_MAGICCLOSE == 0) {
		b.counts = false
	}
	return nil
}
func (b *board) fixed(string) bool { return b.nowayout }

const usual = unix.WDIOF_MAGICCLOSE | unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING

func over(b *board, timeout time.Duration) *Watchdog {
	return &Watchdog{name: "dog", timeout: timeout, open: func() (armed, error) { return openDevice(b, "dog", timeout) }}
}

func TestADeviceIsArmedFedAndTakenOff(t *testing.T) {
	b := &board{options: usual, least: 1, most: 65535}
	w := over(b, 2500*time.Millisecond)
	if err := w.Feed(); err == nil {
		t.Error("it can be fed before it is open")
	}
	if err := w.Open(); err != nil || !b.counts || b.seconds != 2 {
		t.Fatalf("armed %v with %d s: %v", b.counts, b.seconds, err)
	}
	before := b.fed
	if err := w.Feed(); err != nil || b.fed != before+1 {
		t.Errorf("fed %d times: %v", b.fed-before, err)
	}
	if err := w.Disarm(); err != nil || b.counts {
		t.Errorf("after its end it counts: %v: %v", b.counts, err)
	}
	if err := w.Disarm(); err != nil {
		t.Error(err)
	}
	// And once more.
	if err := w.Open(); err != nil || !b.counts {
		t.Errorf("it counts: %v: %v", b.counts, err)
	}
}

// What does not reset the machine in time, whatever becomes of this process, is no watchdog, and is off again.
func TestDevicesThatAreNoWatchdog(t *testing.T) {
	for story, c := range map[string]struct {
		board board
		want  string
		stays bool // armed
	}{
		"none there":              {board{openErr: unix.ENOENT}, "load the board's driver", false},
		"systemd has it":          {board{openErr: unix.EBUSY}, "RuntimeWatchdogSec=", false},
		"not as root":             {board{openErr: unix.EACCES}, "run godwit as root", false},
		"it breaks":               {board{openErr: unix.EIO}, "input/output error", false},
		"it only rings":           {board{options: usual | unix.WDIOF_ALARMONLY, least: 1, most: 9}, "resets nothing", false},
		"it says nothing":         {board{options: usual, infoErr: unix.ENOTTY}, "does not say what it can", false},
		"too coarse":              {board{options: usual, least: 10, most: 100}, "was set to 2s and takes 10s", false},
		"it takes no such time":   {board{options: usual, least: 1, most: 1}, "does not take a timeout of 2s", false},
		"a kill would disarm it":  {board{options: unix.WDIOF_SETTIMEOUT, least: 1, most: 100}, "no magic close", false},
		"too coarse and no way":   {board{options: usual, least: 10, most: 100, nowayout: true}, "nowayout", true},
		"it only rings, no magic": {board{options: unix.WDIOF_ALARMONLY, least: 1, most: 9}, "resets nothing", false},
	} {
		t.Run(story, func(t *testing.T) {
			err := over(&c.board, 2*time.Second).Open()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
			if c.board.counts != c.stays || c.board.openErr == nil && !c.board.closed {
				t.Errorf("it counts: %v, closed: %v", c.board.counts, c.board.closed)
			}
		})
	}
}

// A driver with nowayout cannot be taken off, and that is said.
func TestNoWayOut(t *testing.T) {
	b := &board{least: 1, most: 100, nowayout: true}
	w := over(b, 2*time.Second)
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	if err := w.Disarm(); err == nil || !strings.Contains(err.Error(), "nowayout") || !b.counts {
		t.Errorf("it counts: %v: %v", b.counts, err)
	}
}

func TestFactsWithoutOpening(t *testing.T) {
	root := t.TempDir()
	if f := About(root, Device); f.There {
		t.Errorf("%+v", f)
	}
	for path, text := range map[string]string{
		"dev/watchdog": "", "sys/class/watchdog/watchdog0/identity": "iTCO_wdt\n", "sys/class/watchdog/watchdog0/nowayout": "1\n",
		"sys/class/watchdog/watchdog0/state": "active\n", "sys/class/watchdog/watchdog0/bootstatus": "32\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f, want := About(root, Device), (Facts{There: true, Identity: "iTCO_wdt", Fixed: true, InUse: true, Fired: true}); f != want {
		t.Errorf("%+v, not %+v", f, want)
	}
}

// A watchdog behind a socket hears what it is told, with moments that it can count from.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dog")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 8)
	go func() {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			return
		}
		defer unix.Close(conn)
		message := make([]byte, 64)
		for {
			n, err := unix.Read(conn, message)
			if err != nil || n == 0 {
				close(heard)
				return
			}
			heard <- string(message[:n])
			switch word, _, _ := strings.Cut(string(message[:n]), " "); word {
			case sayArm:
				unix.Write(conn, []byte(tellArmed))
			case sayDisarm:
				unix.Write(conn, []byte(tellOff))
			}
		}
	}()
	w := New(socketPrefix+path, 1500*time.Millisecond)
	before := boottime()
	for _, err := range []error{w.Open(), w.Feed(), w.Disarm()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var ms, at, fed int64
	first, second, third := <-heard, <-heard, <-heard
	if _, err := fmt.Sscanf(first, "arm %d %d", &ms, &at); err != nil || ms != 1500 || time.Duration(at) < before {
		t.Errorf("first it heard %q (%v)", first, err)
	}
	if _, err := fmt.Sscanf(second, "feed %d", &fed); err != nil || fed < at {
		t.Errorf("then it heard %q (%v)", second, err)
	}
	if third != sayDisarm {
		t.Errorf("at last it heard %q", third)
	}
	if err := New(socketPrefix+path+"-none", time.Second).Open(); err == nil {
		t.Error("nobody is there, and it is open")
	}
}
