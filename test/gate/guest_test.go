package gate

import (
	"bufio"
	"bytes"
	"context"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: a VM with UEFI, a display and a guest with the real qemu-guest-agent moves while people look at its screen from another
// host. Its guest says the same of itself before and after, viewers come back, and it goes down in order because its agent is asked.
func TestGuestWithUEFIDisplayAndAgent(t *testing.T) {
	t.Parallel()
	linux, err := guest.ImagesWithAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, lab.Options{Hosts: 2})
	first, second := c.Hosts[0], c.Hosts[1]
	for from, to := range map[string]string{linux.Kernel: "vmlinuz", linux.Initrd: "initrd"} {
		if err := c.Put(from, to); err != nil {
			t.Fatal(err)
		}
	}
	run := func(h *lab.Host, args ...string) {
		t.Helper()
		if _, err := h.Godwit(step(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	run(first, "network", "create", lab.Network, "--subnet", lab.Subnet)
	run(first, "vm", "create", "web-1", "--uefi", "--display", "--memory", "256M", "--kernel", "vmlinuz", "--initrd", "initrd", "--cmdline", linux.Cmdline, "--nic", lab.Network)
	vars := filepath.Join(c.Datastore, "web-1-vars.fd")
	if info, err := os.Stat(vars); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("UEFI variables: %v, %v", info, err)
	}
	run(first, "vm", "create", "screen", "--memory", "32M") // with a display, as it has neither kernel nor firmware, and nothing to boot
	run(first, "vm", "start", "screen")
	run(first, "vm", "create", "lazy", "--memory", "128M", "--kernel", "vmlinuz", "--initrd", "initrd", "--cmdline", linux.Cmdline+" godwit.lazy")
	run(first, "vm", "start", "lazy")
	begun := time.Now()
	run(first, "vm", "start", "web-1")
	waitPicture(t, second, "screen", textLines)
	before := waitGuest(t, second, "web-1")
	t.Logf("its agent answered %v after the start", time.Since(begun).Round(time.Millisecond))
	g := before.GetStatus().GetGuest()
	if g.GetHostname() != "godwit-guest" || g.GetSystem() != "Godwit's Linux guest" || g.GetVersion() == "" {
		t.Errorf("the guest says %v", g)
	}
	ip := addressOf(t, before)
	listed, err := first.Godwit(step(t), "vm", "ls")
	if err != nil || !strings.Contains(line(string(listed), "web-1"), ip) {
		t.Errorf("vm ls does not show %s: %s, %v", ip, listed, err)
	}
	if s := status(t, first, before.GetId()); !s.UEFI {
		t.Errorf("it was not started by UEFI: %+v", s)
	}
	waitPicture(t, second, "web-1", 1) // the firmware's cursor: this guest's kernel has no console there

	at := serveVNC(t, second, "web-1")
	alice, bob := handshake(t, at), handshake(t, at) // both ask to be alone
	alice.update(t)
	bob.update(t)
	run(first, "vm", "migrate", "web-1", "--to", second.Name)
	if _, err := io.Copy(io.Discard, alice.conn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Logf("the viewer's connection ended with %v", err)
	} else if err != nil {
		t.Error("a viewer of the source still hangs there")
	}
	handshake(t, at).update(t)
	waitPicture(t, first, "web-1", 1)
	after := waitGuest(t, first, "web-1")
	if after.GetRun().GetOwner() != second.Name || addressOf(t, after) != ip || after.GetStatus().GetGuest().GetVersion() != g.GetVersion() {
		t.Errorf("after the migration: %v", after)
	}

	pid, err := second.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := second.WaitOther(step(t), "agent", pid); err != nil {
		t.Fatal(err)
	}
	if again := waitGuest(t, first, "web-1"); again.GetStatus().GetPid() != after.GetStatus().GetPid() {
		t.Errorf("after a restart of the agent its process is %d, not %d", again.GetStatus().GetPid(), after.GetStatus().GetPid())
	}

	// The guest whose agent says yes and does nothing is sent the power button within the grace.
	waitGuest(t, second, "lazy")
	lazy := watchConsole(t, second, "lazy")
	run(second, "vm", "stop", "lazy", "--grace", "6s")
	if said := lazy(); !strings.Contains(said, "power button") {
		t.Errorf("no power button was pressed: %s", said)
	}
	watched := watchConsole(t, first, "web-1")
	run(first, "vm", "stop", "web-1", "--grace", "40s")
	if said := watched(); strings.Contains(said, "power button") {
		t.Errorf("its power button was pressed though its agent answers: %s", said)
	}
	run(first, "vm", "start", "web-1") // cold, on the host that it was moved to, with its variables
	run(first, "vm", "stop", "web-1", "--force")
	run(first, "vm", "destroy", "web-1", "--delete-disks")
	if _, err := os.Stat(vars); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its UEFI variables stay: %v", err)
	}
}

// firmwareMax bounds the boot of a guest by UEFI, which takes an emulated processor about 6 s when nothing else runs, and ten times that on a
// machine where much does.
const firmwareMax = 3 * time.Minute

// waitGuest waits until the VM's guest agent answers, and has said an address if the VM has a NIC.
func waitGuest(t *testing.T, h *lab.Host, name string) *godwitv1.VM {
	t.Helper()
	var vm *godwitv1.VM
	ctx, done := context.WithTimeout(t.Context(), firmwareMax)
	defer done()
	if err := lab.Until(ctx, firmwareMax, func() (err error) {
		if vm, err = h.VM(step(t), name); err != nil {
			return err
		}
		g := vm.GetStatus().GetGuest()
		if g.GetAgent() && len(vm.GetSpec().GetNics()) == 0 {
			return nil
		}
		for _, n := range g.GetNics() {
			if g.GetAgent() && len(n.GetAddresses()) > 0 {
				return nil
			}
		}
		return fmt.Errorf("%s: %s, its guest says %v", name, vm.GetStatus().GetState(), vm.GetStatus().GetGuest())
	}); err != nil {
		t.Fatal(err)
	}
	return vm
}

// addressOf returns the address of the VM's only NIC, by the guest agent's word; the guest's own heartbeat must say the same.
func addressOf(t *testing.T, vm *godwitv1.VM) string {
	t.Helper()
	for _, n := range vm.GetStatus().GetGuest().GetNics() {
		if n.GetMac() == vm.GetSpec().GetNics()[0].GetMac() && len(n.GetAddresses()) == 1 {
			ip, _, _ := strings.Cut(n.GetAddresses()[0], "/")
			if beat := vm.GetStatus().GetHeartbeat().GetIp(); beat != "" && beat != ip {
				t.Errorf("the agent says %s, the heartbeat %s", ip, beat)
			}
			return ip
		}
	}
	t.Fatalf("no address for %v: %v", vm.GetSpec().GetNics(), vm.GetStatus().GetGuest())
	return ""
}

// status asks the guest itself, over its control port.
func status(t *testing.T, h *lab.Host, id string) control.Status {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(step(t), "unix", filepath.Join(h.VMDir(id), "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	client := control.NewClient(conn)
	defer client.Close()
	s, err := client.Status(step(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// textLines is how many lines of pixels a screen has something on that shows more than one line of text: what QEMU itself writes
// on the screen of a guest without a video BIOS is one line.
const textLines = 17

// waitPicture takes screenshots until one has something on that many lines of pixels.
func waitPicture(t *testing.T, h *lab.Host, name string, linesMin int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name+".png")
	if err := lab.Until(step(t), 30*time.Second, func() error {
		if _, err := h.Godwit(step(t), "vm", "screenshot", name, "--output", file); err != nil {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		picture, err := png.Decode(bytes.NewReader(text))
		if err != nil {
			return err
		}
		lines := 0
		for y := picture.Bounds().Min.Y; y < picture.Bounds().Max.Y; y++ {
			row := map[color.Color]bool{}
			for x := picture.Bounds().Min.X; x < picture.Bounds().Max.X; x++ {
				row[picture.At(x, y)] = true
			}
			if len(row) > 1 {
				lines++
			}
		}
		if lines < linesMin {
			return fmt.Errorf("%s shows something on %d lines of pixels", name, lines)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// serveVNC runs "vm console --vnc" until the test ends, and returns the path of its socket.
func serveVNC(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := h.Interactive(ctx, "vm", "console", name, "--vnc")
	cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+t.TempDir())
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	path := strings.TrimSpace(said)
	t.Cleanup(func() {
		cancel()
		err := cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 130 {
			t.Errorf("interrupted, it ended with %v: %s", err, errs.String())
		}
		if t.Failed() {
			t.Logf("vm console --vnc said: %s", errs.String())
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its socket stays: %v", err)
		}
	})
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	return path
}

// viewer is a VNC client (RFC 6143).
type viewer struct {
	conn          net.Conn
	width, height uint16
}

// handshake connects as a viewer that asks to be alone.
func handshake(t *testing.T, path string) viewer {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(step(t), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(stepMax)); err != nil {
		t.Fatal(err)
	}
	read := func(n int) []byte {
		t.Helper()
		b := make([]byte, n)
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(b ...byte) {
		t.Helper()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if v := string(read(12)); v != "RFB 003.008\n" {
		t.Fatalf("version %q", v)
	}
	write([]byte("RFB 003.008\n")...)
	if types := read(int(read(1)[0])); !bytes.Equal(types, []byte{1}) { // None
		t.Fatalf("security types %v", types)
	}
	write(1)
	if result := bigendian.BigEndian.Uint32(read(4)); result != 0 {
		t.Fatalf("security result %d", result)
	}
	write(0) // ClientInit: not shared
	v := viewer{conn, bigendian.BigEndian.Uint16(read(2)), bigendian.BigEndian.Uint16(read(2))}
	read(16) // pixel format
	name := string(read(int(bigendian.BigEndian.Uint32(read(4)))))
	if v.width < 640 || v.height < 400 || !strings.Contains(name, "web-1") {
		t.Errorf("the display %q has %d × %d pixels", name, v.width, v.height)
	}
	return v
}

// update asks for the whole picture and waits for the first of it.
func (v viewer) update(t *testing.T) {
	t.Helper()
	request := []byte{3, 0, 0, 0, 0, 0}
	request = bigendian.BigEndian.AppendUint16(request, v.width)
	request = bigendian.BigEndian.AppendUint16(request, v.height)
	if _, err := v.conn.Write(request); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(v.conn, head); err != nil || head[0] != 0 || head[3] == 0 {
		t.Errorf("no update but %v: %v", head, err)
	}
}

// watchConsole collects what the VM prints; the returned function waits for the end of the VM.
func watchConsole(t *testing.T, h *lab.Host, name string) func() string {
	t.Helper()
	cmd := h.Interactive(step(t), "vm", "console", name)
	var out bytes.Buffer
	cmd.Stdout = &out
	in, err := cmd.StdinPipe() // open, or it would leave at once
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		_ = in.Close()
		return out.String()
	}
}
