package guest_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/internal/rig"
	"github.com/godwit-vm/godwit/internal/driver/qga"
	"github.com/godwit-vm/godwit/internal/fault"
)

// recovering reads from an ext4 image whether its file system must be recovered from its journal when it is mounted: so while it is
// mounted, and not while it is frozen (kernel documentation, filesystems/ext4, "The Super Block": s_feature_incompat, INCOMPAT_RECOVER).
func recovering(t *testing.T, image string) bool {
	t.Helper()
	text, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	super := text[1024:]
	if magic := binary.LittleEndian.Uint16(super[0x38:]); magic != 0xef53 {
		t.Fatalf("%s is no ext4 file system: %x", image, magic)
	}
	return binary.LittleEndian.Uint32(super[0x60:])&4 != 0
}

// The story: the real qemu-guest-agent in a Linux guest tells what the guest is, freezes its file system to the last journal entry, thaws
// it, and turns the guest off.
func TestTheRealGuestAgent(t *testing.T) {
	linux, err := guest.ImagesWithAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "agent")
	if err := os.WriteFile(image, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "/usr/sbin/mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := rig.Start(t, qemu, "-machine", "q35", "-cpu", "Westmere", "-m", "256M",
		"-kernel", linux.Kernel, "-initrd", linux.Initrd, "-append", linux.Cmdline,
		"-blockdev", "driver=file,node-name=disk,filename="+image+",cache.direct=on", "-device", "virtio-blk-pci,drive=disk",
		"-nic", "user,model=virtio-net-pci,mac=52:54:00:aa:bb:cc",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,server=on,wait=off,path="+socket,
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0")
	for !strings.Contains(m.Line(), "ready") {
		continue
	}
	t.Logf("ready %v after QEMU's start", time.Since(m.Started))
	ctx := t.Context()
	var c *qga.Client
	for end := time.Now().Add(rig.WaitMax); ; { // it starts beside init's other parts
		if c, err = qga.Dial(ctx, socket); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	defer func() { c.Close() }() // whichever it is then
	if v, err := c.Version(ctx); err != nil || !strings.Contains(v, ".") {
		t.Errorf("version %q, %v", v, err)
	} else {
		t.Logf("qemu-guest-agent %s", v)
	}
	if v, err := c.Hostname(ctx); v != "godwit-guest" || err != nil {
		t.Errorf("host name %q, %v", v, err)
	}
	if v, err := c.System(ctx); v != "Godwit's Linux guest" || err != nil {
		t.Errorf("system %q, %v", v, err)
	}
	nics, err := c.NICs(ctx)
	if got := fmt.Sprint(nics); err != nil || got != "[{eth0 52:54:00:aa:bb:cc [10.0.2.15/24]}]" {
		t.Errorf("%s, %v", got, err)
	}

	if !recovering(t, image) {
		t.Error("the file system is not mounted")
	}
	if n, err := c.Freeze(ctx); n != 1 || err != nil {
		t.Errorf("%d file systems frozen, %v", n, err)
	}
	if frozen, err := c.Frozen(ctx); !frozen || err != nil {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if recovering(t, image) {
		t.Error("the frozen file system is not clean")
	}
	if _, err := c.Hostname(ctx); !fault.Is(err, fault.Incompatible) && !fault.Is(err, fault.Conflict) {
		t.Errorf("a frozen agent answers a question that it does not allow: %v", err)
	}
	c.Close()
	if c, err = qga.Dial(ctx, socket); err != nil { // another client, as a new agent of the host would be, finds it frozen and thaws it
		t.Fatal(err)
	}
	if frozen, err := c.Frozen(ctx); !frozen || err != nil {
		t.Errorf("frozen for the next client: %v, %v", frozen, err)
	}
	if n, err := c.Thaw(ctx); n != 1 || err != nil {
		t.Errorf("%d file systems thawed, %v", n, err)
	}
	if n, err := c.Thaw(ctx); n != 0 || err != nil {
		t.Errorf("%d file systems thawed twice, %v", n, err)
	}
	if frozen, err := c.Frozen(ctx); frozen || err != nil {
		t.Errorf("frozen after the thaw: %v, %v", frozen, err)
	}
	if !recovering(t, image) {
		t.Error("the thawed file system is still clean: nothing writes to it")
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Exited:
	case <-time.After(rig.WaitMax):
		t.Error("the guest did not shut down")
	}
}
