package qemu_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func TestImagesAreMadeAndChecked(t *testing.T) {
	dir := folder(t)
	for _, format := range []inventory.DiskFormat{inventory.Raw, inventory.Qcow2} {
		path := filepath.Join(dir, "disk."+string(format))
		try(t, qemu.CreateImage(within(t), path, format, 3*inventory.GiB, vmUser(t)))
		image, err := qemu.CheckImage(within(t), path, format)
		try(t, err)
		if image.Format != format || image.Virtual != 3*inventory.GiB || image.Actual > inventory.MiB {
			t.Errorf("%+v: want a sparse %s image of 3 GiB", image, format)
		}
		if user := vmUser(t); user != nil {
			info, err := os.Stat(path)
			try(t, err)
			if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != user.UID || info.Mode().Perm() != 0o600 {
				t.Errorf("%s belongs to %d, mode %v", path, st.Uid, info.Mode())
			}
		}
		if err := qemu.CreateImage(within(t), path, format, inventory.GiB, nil); !fault.Is(err, fault.Exists) {
			t.Errorf("over an image that is there: %v", err)
		}
		if again, err := qemu.CheckImage(within(t), path, format); err != nil || again != image {
			t.Errorf("the image that was there is now %+v, %v", again, err)
		}
	}
}

func TestImagesThatNoVMMayHave(t *testing.T) {
	dir := folder(t)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		try(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	tool := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(within(t), qemu.DefaultImageTool, args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, out)
		}
	}
	good := filepath.Join(dir, "good.qcow2")
	tool("create", "-q", "-f", "qcow2", good, "1G")
	overlay := filepath.Join(dir, "overlay.qcow2")
	tool("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", good, overlay)
	external := filepath.Join(dir, "external.qcow2")
	tool("create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), external, "1M")
	vmdk := filepath.Join(dir, "disk.vmdk")
	tool("create", "-q", "-f", "vmdk", vmdk, "1M")

	for what, c := range map[string]struct {
		path   string
		format inventory.DiskFormat
		kind   fault.Kind
		says   string
	}{
		"nothing":                    {filepath.Join(dir, "nowhere"), inventory.Raw, fault.NotFound, "no such file"},
		"a folder":                   {dir, inventory.Raw, fault.Invalid, "no regular file"},
		"an empty file":              {write("empty", ""), inventory.Raw, fault.Invalid, "empty"},
		"a text as qcow2":            {write("text", strings.Repeat("hello\n", 200)), inventory.Qcow2, fault.Invalid, "no qcow2 image"},
		"a qcow2 image as raw":       {good, inventory.Raw, fault.Invalid, "is a qcow2 image"},
		"an image of another maker":  {vmdk, inventory.Qcow2, fault.Invalid, "qemu-img convert"},
		"an overlay":                 {overlay, inventory.Qcow2, fault.Invalid, "backing file"},
		"data in another file":       {external, inventory.Qcow2, fault.Invalid, "another file"},
		"a header and nothing after": {write("cut", "QFI\xfb\x00\x00\x00\x03"), inventory.Qcow2, fault.Invalid, ""},
	} {
		_, err := qemu.CheckImage(within(t), c.path, c.format)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (kind %v)", what, err, fault.KindOf(err))
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", what, err)
		}
	}
	if _, err := qemu.CheckImage(within(t), good, inventory.Qcow2); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

func TestImageOfARunningVMCanBeLookedAt(t *testing.T) {
	h := newHouse(t)
	spec := h.heart("web-1")
	h.start(h.config(spec, "a"))
	path, err := h.path(spec.Disks[0].File)
	try(t, err)
	_, err = qemu.CheckImage(within(t), path, inventory.Qcow2)
	try(t, err)
}

func TestImageThatCannotBeMadeLeavesNothing(t *testing.T) {
	dir := folder(t)
	path := filepath.Join(dir, "disk.qcow2")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := qemu.CreateImage(canceled, path, inventory.Qcow2, inventory.GiB, nil); err == nil {
		t.Error("made, though nobody wanted it any more")
	}
	if err := qemu.CreateImage(within(t), path, inventory.Qcow2, -1, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a negative size: %v", err)
	}
	if err := qemu.CreateImage(within(t), path, "vmdk", inventory.GiB, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a strange format: %v", err)
	}
	if err := qemu.CreateImage(within(t), filepath.Join(dir, "no", "disk"), inventory.Raw, inventory.GiB, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("no folder: %v", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestAFullDatastoreIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := folder(t)
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("this sandbox lets nobody mount: %v", err)
	}
	defer func() { try(t, syscall.Unmount(dir, 0)) }()
	path := filepath.Join(dir, "disk.qcow2")
	err := qemu.CreateImage(within(t), path, inventory.Qcow2, inventory.GiB, nil)
	if !fault.Is(err, fault.NoResources) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("%v (kind %v)", err, fault.KindOf(err))
	}
	t.Log(err)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the half image is left")
	}
}
