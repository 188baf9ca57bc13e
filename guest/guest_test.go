package guest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/guest/internal/rig"
	"github.com/godwit-vm/godwit/guest/stream"
)

const qemu = "qemu-system-x86_64"

// machine is a QEMU with the Linux guest: user-mode network with the guest's ports forwarded from an address of its own, and both
// virtio-serial ports on unix sockets in a folder.
type machine struct {
	*rig.Machine
	t       *testing.T
	address string
	folder  string
}

// start boots the guest. The caller waits for it by ready.
func start(t *testing.T) *machine {
	t.Helper()
	linux, err := guest.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, folder: t.TempDir()}
	m.address = fmt.Sprintf("127.77.%d.%d", os.Getpid()>>8&0xff, os.Getpid()&0xff)
	var forward strings.Builder
	for _, port := range []string{"tcp/7", "tcp/9", "tcp/19", "udp/7", "udp/19"} {
		kind, number, _ := strings.Cut(port, "/")
		fmt.Fprintf(&forward, ",hostfwd=%s:%s:2%04s-:%s", kind, m.address, number, number)
	}
	m.Machine = rig.Start(t, qemu, "-machine", "q35", "-cpu", "Westmere", "-m", "512M",
		"-kernel", linux.Kernel, "-initrd", linux.Initrd, "-append", linux.Cmdline,
		"-netdev", "user,id=n0"+forward.String(), "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=hb,server=on,wait=off,path="+filepath.Join(m.folder, "heartbeat"),
		"-device", "virtserialport,chardev=hb,id=hb,name="+control.HeartbeatName,
		"-chardev", "socket,id=ctl,server=on,wait=off,path="+filepath.Join(m.folder, "control"),
		"-device", "virtserialport,chardev=ctl,id=ctl,name="+control.PortName)
	return m
}

// wait returns the first console line that contains text.
func (m *machine) wait(text string) string {
	m.t.Helper()
	for range 100 {
		if line := m.Line(); strings.Contains(line, text) {
			return line
		}
	}
	m.t.Fatalf("a hundred lines and no %q", text)
	return ""
}

func (m *machine) dial(network string, port int) net.Conn {
	m.t.Helper()
	address := filepath.Join(m.folder, "control")
	switch {
	case network != "unix":
		address = fmt.Sprintf("%s:%d", m.address, 20000+port)
	case port == 0:
		address = filepath.Join(m.folder, "heartbeat")
	}
	conn, err := (&net.Dialer{}).DialContext(m.t.Context(), network, address)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(rig.WaitMax))
	return conn
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rig.WaitMax)
	t.Cleanup(cancel)
	return ctx
}

// One boot serves all these, as it takes seconds; the last one ends the guest.
func TestLinuxGuest(t *testing.T) {
	m := start(t)
	line := m.wait("ready")
	t.Logf("%s; %v after QEMU's start", line, time.Since(m.Started).Round(time.Millisecond))
	if !strings.Contains(line, "ip=10.0.2.15") {
		t.Fatalf("no address by DHCP: %s", line)
	}
	boot := ""
	t.Run("says how it is by network and by port", func(t *testing.T) {
		byNet := control.NewClient(m.dial("tcp", control.Port))
		byPort := control.NewClient(m.dial("unix", 1))
		defer func() { _ = byNet.Close() }()
		defer func() { _ = byPort.Close() }()
		a, err := byNet.Status(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		b, err := byPort.Status(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		if boot = a.Boot; a.Boot != b.Boot || len(a.Boot) != 16 || a.IP != "10.0.2.15" || a.Dirty != nil || b.UptimeMS < a.UptimeMS {
			t.Errorf("by network %+v, by port %+v", a, b)
		}
	})
	t.Run("serves one client of the port after the other", func(t *testing.T) {
		for range 3 {
			conn := m.dial("unix", 1)
			if _, err := io.WriteString(conn, "status\nstat"); err != nil { // leaves an answer and half a request behind
				t.Fatal(err)
			}
			_ = conn.Close()
			c := control.NewClient(m.dial("unix", 1))
			if s, err := c.Status(bounded(t)); err != nil || s.Boot != boot {
				t.Fatalf("%+v, %v", s, err)
			}
			_ = c.Close()
		}
	})
	t.Run("beats", func(t *testing.T) {
		lines := bufio.NewScanner(m.dial("unix", 0))
		var last control.Heartbeat
		for beats := 0; beats < 5 && lines.Scan(); {
			beat, err := control.ParseHeartbeat(lines.Text())
			if err != nil {
				t.Log(err) // the first may be torn
				continue
			}
			if beats > 0 && beat.Count != last.Count+1 || beat.Boot != boot || beat.IP != "10.0.2.15" {
				t.Fatalf("%+v after %+v", beat, last)
			}
			last = beat
			beats++
		}
		if last.Count == 0 {
			t.Fatalf("no heartbeat: %v", lines.Err())
		}
	})
	t.Run("echoes", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			conn := m.dial(network, stream.EchoPort)
			got := make([]byte, 10)
			if _, err := io.WriteString(conn, "fly"); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(got); err != nil || string(got[:n]) != "fly" {
				t.Errorf("%s: %q, %v", network, got[:n], err)
			}
		}
	})
	t.Run("counts", func(t *testing.T) {
		r, err := stream.NewReader(m.dial("tcp", stream.CountPort), 2<<20)
		if err != nil {
			t.Fatal(err)
		}
		for r.Bytes() < 1<<20 {
			if _, err := r.Read(); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("knows its memory while a writer runs", func(t *testing.T) {
		c := control.NewClient(m.dial("tcp", control.Port))
		defer func() { _ = c.Close() }()
		if _, err := c.Checksum(bounded(t)); !errors.Is(err, control.ErrRefused) {
			t.Errorf("without a region: %v", err)
		}
		if _, err := c.Dirty(bounded(t), control.DirtyOptions{Set: 1 << 30}); !errors.Is(err, control.ErrRefused) {
			t.Errorf("more than the guest has: %v", err)
		}
		began := time.Now()
		if _, err := c.Dirty(bounded(t), control.DirtyOptions{Rate: 20 << 20, Set: 64 << 20, Pattern: "random"}); err != nil {
			t.Fatal(err)
		}
		filled := time.Since(began)
		before, err := c.Status(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		for range 3 {
			sum, err := c.Checksum(bounded(t))
			if err != nil || !sum.OK || sum.Pages != 64<<20/4096 {
				t.Fatalf("%v: %+v, %v", sum, sum, err)
			}
		}
		took := time.Since(began)
		after, err := c.Stop(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		rate := float64(after.Dirty.Writes-before.Dirty.Writes) * 4096 / float64(after.UptimeMS-before.UptimeMS) * 1000
		t.Logf("64 MiB filled in %v, a check took %v, %.1f MiB/s written meanwhile",
			filled.Round(time.Millisecond), (took / 3).Round(time.Millisecond), rate/(1<<20))
		if after.Dirty.Running || rate < 1<<20 {
			t.Errorf("%+v after %+v", after.Dirty, before.Dirty)
		}
		still, err := c.Checksum(bounded(t))
		if err != nil || !still.OK {
			t.Fatalf("%v, %v", still, err)
		}
		if again, err := c.Checksum(bounded(t)); err != nil || again != still {
			t.Errorf("two checks of a still region differ: %+v, %+v, %v", again, still, err)
		}
		if _, err := c.Corrupt(bounded(t), 99); err != nil {
			t.Fatal(err)
		}
		if sum, err := c.Checksum(bounded(t)); err != nil || sum.OK || sum.Bad != 1 || sum.FirstBad != 99 {
			t.Errorf("a flipped bit in page 99: %+v, %v", sum, err)
		}
	})
	t.Run("has a console", func(t *testing.T) {
		if _, err := io.WriteString(m.COM1, "status\nhelp\nnonsense\n"); err != nil {
			t.Fatal(err)
		}
		if line := m.wait("up "); !strings.Contains(line, boot) {
			t.Errorf("status says %q", line)
		}
		m.wait("poweroff   turn the guest off")
		m.wait(`"nonsense" is unknown`)
	})
	t.Run("heeds the power button", func(t *testing.T) {
		m.Do("system_powerdown", nil)
		select {
		case err := <-m.Exited:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(rig.WaitMax):
			t.Error("still there")
		}
	})
}

func TestLinuxGuestSurvivesMigrationWithARunningWriter(t *testing.T) {
	m := start(t)
	m.wait("ready")
	c := control.NewClient(m.dial("unix", 1))
	before, err := c.Dirty(bounded(t), control.DirtyOptions{Rate: 40 << 20, Set: 64 << 20, Pattern: "random"})
	if err != nil {
		t.Fatal(err)
	}
	folder, address := t.TempDir(), fmt.Sprintf("127.78.%d.%d", os.Getpid()>>8&0xff, os.Getpid()&0xff)
	pace := rig.Pace{Bandwidth: 128 << 20, DowntimeMS: 10, Rounds: 4, Poll: 10 * time.Millisecond}
	moved := m.Migrate(pace, strings.NewReplacer(m.folder, folder, m.address, address).Replace)
	n := &machine{Machine: moved, t: t, folder: folder, address: address}
	c = control.NewClient(n.dial("unix", 1))
	sum, err := c.Checksum(bounded(t))
	if err != nil || !sum.OK {
		t.Fatalf("with the writer running: %v, %v", sum, err)
	}
	after, err := c.Stop(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if after.Boot != before.Boot || after.UptimeMS <= before.UptimeMS || after.Dirty.Writes <= before.Dirty.Writes {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if sum, err := c.Checksum(bounded(t)); err != nil || !sum.OK {
		t.Fatalf("with the writer stopped: %v, %v", sum, err)
	}
	t.Logf("%d pages written, %v", after.Dirty.Writes, sum)
}
