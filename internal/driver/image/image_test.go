package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// waitMax bounds every step; it is generous, as the machine may be busy with other tests.
const waitMax = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	t.Cleanup(cancel)
	return ctx
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// folder returns a datastore's folder as a root agent has it: it belongs to QEMU's user, who can enter it.
func folder(t *testing.T) image.Folder {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw-") //nolint:usetesting // t.TempDir is closed to other users
	try(t, err)
	t.Cleanup(func() { try(t, os.RemoveAll(dir)) })
	f := image.Folder{Root: dir, Host: "host-1"}
	if os.Geteuid() == 0 {
		u, err := qemu.LookupUser(qemu.DefaultUser)
		try(t, err)
		f.Owner = (*image.Owner)(u)
		try(t, os.Chown(dir, int(u.UID), int(u.GID)))
	}
	try(t, os.Chmod(dir, 0o755))
	return f
}

func tool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(within(t), image.DefaultTool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return string(out)
}

// noise is a disk's worth of bytes that no compression or zero detection makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// bytesOf returns what a guest would read from an image.
func bytesOf(t *testing.T, path, format string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	tool(t, "convert", "-f", format, "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	try(t, err)
	return b
}

// tidy demands that nothing hidden is left in a folder.
func tidy(t *testing.T, f image.Folder) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(f.Root, ".*"))
	try(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestImagesAreMadeAndChecked(t *testing.T) {
	f := folder(t)
	for _, format := range []inventory.DiskFormat{inventory.Raw, inventory.Qcow2} {
		path := filepath.Join(f.Root, "disk."+string(format))
		try(t, f.Create(within(t), path, format, 3*inventory.GiB))
		made, err := f.Check(within(t), path, format)
		try(t, err)
		if made.Format != format || made.Virtual != 3*inventory.GiB || made.Actual > inventory.MiB {
			t.Errorf("%+v: want a sparse %s image of 3 GiB", made, format)
		}
		info, err := os.Stat(path)
		try(t, err)
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || info.Mode().Perm() != 0o600 || f.Owner != nil && st.Uid != f.Owner.UID {
			t.Errorf("%s belongs to %d, mode %v", path, st.Uid, info.Mode())
		}
		if err := f.Create(within(t), path, format, inventory.GiB); !fault.Is(err, fault.Exists) {
			t.Errorf("over an image that is there: %v", err)
		}
		if again, err := f.Check(within(t), path, format); err != nil || again != made {
			t.Errorf("the image that was there is now %+v, %v", again, err)
		}
	}
	tidy(t, f)
}

// The story: several hosts make an image of the same name in the same moment. One wins, and what it made is whole.
func TestOneOfManyWins(t *testing.T) {
	f := folder(t)
	path := filepath.Join(f.Root, "disk.qcow2")
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		host := f
		host.Host = inventory.HostID([]string{"host-1", "host-2", "host-3", "host-4"}[i])
		all.Go(func() { errs[i] = host.Create(within(t), path, inventory.Qcow2, inventory.Bytes(i+1)*inventory.GiB) })
	}
	all.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Error("two hosts made the same image")
		case !fault.Is(err, fault.Exists):
			t.Errorf("host %d: %v", i+1, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody made it")
	}
	if made, err := f.Check(within(t), path, inventory.Qcow2); err != nil || made.Virtual != inventory.Bytes(winner+1)*inventory.GiB {
		t.Errorf("%+v, %v; host %d won", made, err, winner+1)
	}
	tidy(t, f)
}

func TestImagesThatNoVMMayHave(t *testing.T) {
	f := folder(t)
	outside := folder(t)
	write := func(name, text string) string {
		path := filepath.Join(f.Root, name)
		try(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	in := func(name string) string { return filepath.Join(f.Root, name) }
	good := in("good.qcow2")
	tool(t, "create", "-q", "-f", "qcow2", good, "1G")
	elsewhere := filepath.Join(outside.Root, "elsewhere.qcow2")
	tool(t, "create", "-q", "-f", "qcow2", elsewhere, "1G")
	tool(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", elsewhere, in("astray.qcow2"))
	tool(t, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", in("shadow.qcow2"))
	tool(t, "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", `json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}`, in("json.qcow2"), "1M")
	tool(t, "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://127.0.0.1:1/x", in("nbd.qcow2"), "1M")
	tool(t, "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "loop.qcow2", in("loop.qcow2"), "1M")
	tool(t, "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "gone.qcow2", in("orphan.qcow2"), "1M")
	tool(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+in("data"), in("external.qcow2"), "1M")
	tool(t, "create", "-q", "-f", "vmdk", in("disk.vmdk"), "1M")

	for what, c := range map[string]struct {
		path   string
		format inventory.DiskFormat
		kind   fault.Kind
		says   string
	}{
		"nothing":                      {in("nowhere"), inventory.Raw, fault.NotFound, "no such file"},
		"a folder":                     {f.Root, inventory.Raw, fault.Invalid, "no regular file"},
		"an empty file":                {write("empty", ""), inventory.Raw, fault.Invalid, "empty"},
		"a text as qcow2":              {write("text", strings.Repeat("hello\n", 200)), inventory.Qcow2, fault.Invalid, "no qcow2 image"},
		"a short text as qcow2":        {write("note", "hello\n"), inventory.Qcow2, fault.Invalid, "no qcow2 image"},
		"a qcow2 image as raw":         {good, inventory.Raw, fault.Invalid, "is a qcow2 image"},
		"an image of another maker":    {in("disk.vmdk"), inventory.Qcow2, fault.Invalid, "image import"},
		"a backing file elsewhere":     {in("astray.qcow2"), inventory.Qcow2, fault.Invalid, "not on its datastore"},
		"the passwords as its backing": {in("shadow.qcow2"), inventory.Qcow2, fault.Invalid, "not on its datastore"},
		"the same, hidden in JSON":     {in("json.qcow2"), inventory.Qcow2, fault.Invalid, "not on its datastore"},
		"a server as its backing":      {in("nbd.qcow2"), inventory.Qcow2, fault.Invalid, "not on its datastore"},
		"itself as its backing":        {in("loop.qcow2"), inventory.Qcow2, fault.Invalid, "more than 16"},
		"a backing that is gone":       {in("orphan.qcow2"), inventory.Qcow2, fault.Invalid, "missing"},
		"data in another file":         {in("external.qcow2"), inventory.Qcow2, fault.Invalid, "another file"},
		"a header and nothing after":   {write("cut", "QFI\xfb\x00\x00\x00\x03"), inventory.Qcow2, fault.Invalid, "cut off"},
	} {
		_, err := f.Check(within(t), c.path, c.format)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (kind %v)", what, err, fault.KindOf(err))
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", what, err)
		}
	}
	if _, err := f.Check(within(t), good, inventory.Qcow2); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

// The story: a base is made once, and machines are thin clones of it. They read what it has, keep what they write, and stand on it wherever the
// datastore is mounted; a full copy stands alone.
func TestThinAndFullClones(t *testing.T) {
	f := folder(t)
	base, content := filepath.Join(f.Root, "base.qcow2"), noise(1<<20)
	raw := filepath.Join(t.TempDir(), "raw")
	try(t, os.WriteFile(raw, content, 0o644))
	try(t, f.Import(within(t), base, inventory.Qcow2, image.Source{Location: raw, Format: inventory.Raw}, nil))
	try(t, os.Mkdir(filepath.Join(f.Root, "web"), 0o755))
	thin, second := filepath.Join(f.Root, "web", "thin.qcow2"), filepath.Join(f.Root, "second.qcow2")
	try(t, f.Clone(within(t), thin, base, inventory.Qcow2, 4*inventory.MiB))
	try(t, f.Clone(within(t), second, thin, inventory.Qcow2, 0))
	made, err := f.Check(within(t), thin, inventory.Qcow2)
	try(t, err)
	if made.Virtual != 4*inventory.MiB || made.Actual > 512*inventory.KiB || made.Backing != "base.qcow2" {
		t.Errorf("the thin clone is %+v", made)
	}
	if said := tool(t, "info", thin); !strings.Contains(said, "backing file: ../base.qcow2") || !strings.Contains(said, "backing file format: qcow2") {
		t.Errorf("its header does not name the base relative to itself with its format:\n%s", said)
	}
	if got := bytesOf(t, second, "qcow2"); !bytes.Equal(got[:len(content)], content) || len(got) != 4<<20 {
		t.Error("the second clone does not read what the base has")
	}
	clones, err := f.Clones(within(t), base)
	if err != nil || !slices.Equal(clones, []string{"web/thin.qcow2"}) {
		t.Errorf("clones of the base: %v, %v", clones, err)
	}
	// Elsewhere, as another host mounts it.
	moved := f
	moved.Root += "-moved"
	try(t, os.Rename(f.Root, moved.Root))
	_, err = moved.Check(within(t), filepath.Join(moved.Root, "second.qcow2"), inventory.Qcow2)
	try(t, errors.Join(err, os.Rename(moved.Root, f.Root)))

	var told []inventory.Bytes
	other := folder(t)
	full := filepath.Join(other.Root, "full.raw")
	try(t, other.Copy(within(t), full, inventory.Raw, f, second, inventory.Qcow2, 8*inventory.MiB, func(done, total inventory.Bytes, _ string) {
		if total != 4*inventory.MiB || done > total {
			t.Errorf("%v of %v", done, total)
		}
		told = append(told, done)
	}))
	if len(told) == 0 || !slices.IsSorted(told) || told[len(told)-1] != 4*inventory.MiB {
		t.Errorf("its progress was %v", told)
	}
	if got, err := os.ReadFile(full); err != nil || len(got) != 8<<20 || !bytes.Equal(got[:len(content)], content) {
		t.Errorf("the copy has %d bytes, or others than the base: %v", len(got), err)
	}
	for what, err := range map[string]error{
		"smaller than the base": f.Clone(within(t), filepath.Join(f.Root, "x"), base, inventory.Qcow2, inventory.MiB/2),
		"of no image":           f.Clone(within(t), filepath.Join(f.Root, "x"), filepath.Join(f.Root, "web"), inventory.Raw, 0),
		"over the base itself":  f.Copy(within(t), base, inventory.Qcow2, f, thin, inventory.Qcow2, 0, nil),
	} {
		if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Exists) {
			t.Errorf("a clone %s: %v", what, err)
		}
	}
	tidy(t, f)
	tidy(t, other)
}

func TestGrow(t *testing.T) {
	f := folder(t)
	path := filepath.Join(f.Root, "disk.qcow2")
	try(t, f.Create(within(t), path, inventory.Qcow2, 2*inventory.MiB))
	try(t, f.Grow(within(t), path, inventory.Qcow2, 5*inventory.MiB))
	try(t, f.Grow(within(t), path, inventory.Qcow2, 5*inventory.MiB)) // again is no error
	if made, err := f.Check(within(t), path, inventory.Qcow2); err != nil || made.Virtual != 5*inventory.MiB {
		t.Errorf("%+v, %v", made, err)
	}
	for _, size := range []inventory.Bytes{inventory.MiB, inventory.DiskMax + 1} {
		if err := f.Grow(within(t), path, inventory.Qcow2, size); !fault.Is(err, fault.Invalid) {
			t.Errorf("to %v: %v", size, err)
		}
	}
	// Somebody has it open, as a QEMU has.
	nbd := exec.CommandContext(t.Context(), "/usr/bin/qemu-nbd", "--fork", "--pid-file="+path+".pid", "-k", path+".sock", "-f", "qcow2", path)
	if out, err := nbd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pid, err := os.ReadFile(path + ".pid")
	try(t, err)
	err = f.Grow(within(t), path, inventory.Qcow2, 6*inventory.MiB)
	try(t, exec.CommandContext(t.Context(), "kill", strings.TrimSpace(string(pid))).Run())
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("while it is in use: %v", err)
	}
}

func TestImageThatCannotBeMadeLeavesNothing(t *testing.T) {
	f := folder(t)
	path := filepath.Join(f.Root, "disk.qcow2")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Create(canceled, path, inventory.Qcow2, inventory.GiB); !fault.Is(err, fault.Canceled) {
		t.Errorf("made, though nobody wanted it any more: %v", err)
	}
	for what, err := range map[string]error{
		"a negative size":   f.Create(within(t), path, inventory.Qcow2, -1),
		"too large a size":  f.Create(within(t), path, inventory.Qcow2, inventory.DiskMax+1),
		"a strange format":  f.Create(within(t), path, "vmdk", inventory.GiB),
		"too long a name":   f.Create(within(t), filepath.Join(f.Root, strings.Repeat("a", 200)), inventory.Qcow2, inventory.GiB),
		"nothing to import": f.Import(within(t), path, inventory.Qcow2, image.Source{}, nil),
	} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := f.Create(within(t), filepath.Join(f.Root, "no", "disk"), inventory.Raw, inventory.GiB); !fault.Is(err, fault.NotFound) {
		t.Errorf("no folder: %v", err)
	}
	if files, err := os.ReadDir(f.Root); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestAFullDatastoreIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	f := folder(t)
	if err := syscall.Mount("none", f.Root, "tmpfs", 0, "size=64k,mode=777"); err != nil {
		t.Skipf("this sandbox lets nobody mount: %v", err)
	}
	defer func() { try(t, syscall.Unmount(f.Root, 0)) }()
	path := filepath.Join(f.Root, "disk.qcow2")
	err := f.Create(within(t), path, inventory.Qcow2, inventory.GiB)
	if !fault.Is(err, fault.NoResources) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("%v (kind %v)", err, fault.KindOf(err))
	}
	source := filepath.Join(t.TempDir(), "raw")
	try(t, os.WriteFile(source, noise(1<<20), 0o644))
	err = f.Import(within(t), path, inventory.Raw, image.Source{Location: source, Format: inventory.Raw}, nil)
	if !fault.Is(err, fault.NoResources) {
		t.Errorf("%v (kind %v)", err, fault.KindOf(err))
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the half image is left")
	}
	tidy(t, f)
}

// The story: somebody removes a base while another host makes a clone of it. One of them gives way, and no clone stands on nothing.
func TestRemoveAgainstClone(t *testing.T) {
	f := folder(t)
	there := f
	there.Host = "host-2"
	base, clone := filepath.Join(f.Root, "base.qcow2"), filepath.Join(f.Root, "clone.qcow2")
	unused := func(ctx context.Context) error {
		clones, err := f.Clones(ctx, base)
		if len(clones) > 0 {
			return fault.New(fault.Conflict, "it has clones: %v", clones)
		}
		return err
	}
	for round := range 6 {
		if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
			try(t, f.Create(within(t), base, inventory.Qcow2, inventory.MiB))
		}
		var all sync.WaitGroup
		var removed, cloned error
		all.Go(func() { cloned = there.Clone(within(t), clone, base, inventory.Qcow2, 0) })
		all.Go(func() {
			time.Sleep(time.Duration(round) * 8 * time.Millisecond) // somewhere in the clone's course
			removed = f.Remove(within(t), base, unused)
		})
		all.Wait()
		t.Logf("round %d: remove: %v; clone: %v", round, removed, cloned)
		_, err := os.Stat(base)
		switch {
		case removed == nil && cloned == nil:
			t.Fatal("the base is gone and the clone is there")
		case (removed == nil) != errors.Is(err, fs.ErrNotExist):
			t.Errorf("remove said %v, and the base: %v", removed, err)
		}
		if _, err := f.Check(within(t), clone, inventory.Qcow2); (err == nil) != (cloned == nil) {
			t.Errorf("clone said %v, and the clone: %v", cloned, err)
		}
		if cloned == nil {
			try(t, os.Remove(clone))
		}
		tidy(t, f)
	}
	// A reason that comes up between the two looks puts it back.
	if _, err := os.Stat(base); err != nil {
		try(t, f.Create(within(t), base, inventory.Qcow2, inventory.MiB))
	}
	looks := 0
	err := f.Remove(within(t), base, func(context.Context) error {
		if looks++; looks == 2 {
			return fault.New(fault.Conflict, "a clone came")
		}
		return nil
	})
	if _, gone := os.Stat(base); !fault.Is(err, fault.Conflict) || gone != nil {
		t.Errorf("%v, %v", err, gone)
	}
	tidy(t, f)
}

// The story: an agent is killed in the middle of everything. When it starts next it removes what it had half made, gives what it was about to
// remove its name again, and touches neither images nor what another host is making.
func TestSweep(t *testing.T) {
	f := folder(t)
	at := func(name string) string { return filepath.Join(f.Root, name) }
	for _, name := range []string{
		"keep.qcow2", ".godwit-part-host-1-0123456789abcdef", ".godwit-part-host-1-x-0123456789abcdef", ".godwit-part-host-2-0123456789abcdef",
		".godwit-gone-host-1-0123456789abcdef-base-12.qcow2", ".godwit-gone-host-2-0123456789abcdef-other.qcow2", ".hidden",
	} {
		try(t, os.WriteFile(at(name), []byte(name), 0o600))
	}
	swept, err := f.Sweep(within(t))
	try(t, err)
	if len(swept) != 2 {
		t.Errorf("swept %v", swept)
	}
	var left []string
	entries, err := os.ReadDir(f.Root)
	try(t, err)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	want := []string{
		".godwit-gone-host-2-0123456789abcdef-other.qcow2", ".godwit-part-host-1-x-0123456789abcdef", ".godwit-part-host-2-0123456789abcdef",
		".hidden", "base-12.qcow2", "keep.qcow2",
	}
	if !slices.Equal(left, want) {
		t.Errorf("left is %q", left)
	}
}

func TestListTellsWhatFilesAre(t *testing.T) {
	f := folder(t)
	try(t, f.Create(within(t), filepath.Join(f.Root, "base.qcow2"), inventory.Qcow2, inventory.GiB))
	try(t, f.Clone(within(t), filepath.Join(f.Root, "web.qcow2"), filepath.Join(f.Root, "base.qcow2"), inventory.Qcow2, 0))
	try(t, f.Write(filepath.Join(f.Root, "seed.iso"), make([]byte, 4096)))
	try(t, os.WriteFile(filepath.Join(f.Root, "note.txt"), []byte("hello"), 0o644))
	try(t, os.WriteFile(filepath.Join(f.Root, "odd.qcow2"), []byte("QFI\xfb\x00\x00\x00\x03"), 0o644))
	try(t, os.Mkdir(filepath.Join(f.Root, "locks"), 0o755))
	try(t, os.WriteFile(filepath.Join(f.Root, "locks", "vm.lock.1"), nil, 0o644))
	all, err := f.List(within(t))
	try(t, err)
	var seen []string
	for _, i := range all {
		seen = append(seen, strings.Join([]string{i.Path, string(i.Format), i.Virtual.String(), i.Backing}, " "))
	}
	want := []string{"base.qcow2 qcow2 1 GiB ", "note.txt  0 B ", "odd.qcow2  0 B ", "seed.iso raw 4 KiB ", "web.qcow2 qcow2 1 GiB base.qcow2"}
	if !slices.Equal(seen, want) {
		t.Errorf("%q", seen)
	}
	if info, err := os.Stat(filepath.Join(f.Root, "seed.iso")); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("others can read the seed, or write to it: %v, %v", info.Mode(), err)
	}
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
