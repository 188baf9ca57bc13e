package datastore_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/fault"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, kind fault.Kind, err error) string {
	t.Helper()
	if fault.KindOf(err) != kind || strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %v (%v), want one line of %v", err, fault.KindOf(err), kind)
	}
	t.Log(err)
	return err.Error()
}

func errOf[T any](_ T, err error) error { return err }

func create(t *testing.T) *datastore.Datastore {
	t.Helper()
	d, err := datastore.Create(filepath.Join(t.TempDir(), "ds"), "shared", datastore.KeepOwner)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func TestHostsKnowADatastoreByItsMarker(t *testing.T) {
	d := create(t)
	elsewhere := filepath.Join(t.TempDir(), "mnt") // as another host mounts it
	must(t, os.Symlink(d.Path, elsewhere))
	again, err := datastore.Open(elsewhere)
	must(t, err)
	defer again.Close()
	if again.ID != d.ID || again.Name != "shared" || again.Path != elsewhere {
		t.Errorf("got %+v, want %+v", again, d)
	}
	must(t, d.Check())
	want(t, fault.Exists, errOf(datastore.Create(d.Path, "other", datastore.KeepOwner)))
	other := create(t)
	if other.ID == d.ID {
		t.Error("two datastores have one identity")
	}
}

func TestWhatIsNoDatastoreIsSaidInOneLine(t *testing.T) {
	dir := t.TempDir()
	want(t, fault.NotFound, errOf(datastore.Open(filepath.Join(dir, "missing"))))
	want(t, fault.NotFound, errOf(datastore.Open(dir)))
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	want(t, fault.Invalid, errOf(datastore.Open(file)))
	want(t, fault.Invalid, errOf(datastore.Create(file, "x", datastore.KeepOwner)))
	want(t, fault.Invalid, errOf(datastore.Open("")))
	want(t, fault.Invalid, errOf(datastore.Create(dir, "Not A Name", datastore.KeepOwner)))
	must(t, os.WriteFile(filepath.Join(dir, datastore.MarkerFile), []byte(`{"id":""}`), 0o600))
	want(t, fault.Internal, errOf(datastore.Open(dir)))
}

func TestMountThatGoesAwayIsNoticed(t *testing.T) {
	d := create(t)
	gone := d.Path + ".gone"
	must(t, os.Rename(d.Path, gone))
	want(t, fault.Unavailable, d.Check())
	must(t, os.Mkdir(d.Path, 0o755)) // the bare mount point
	want(t, fault.Unavailable, d.Check())
	must(t, os.Remove(d.Path))
	other, err := datastore.Create(d.Path, "other", datastore.KeepOwner)
	must(t, err)
	must(t, other.Close())
	want(t, fault.Unavailable, d.Check())
	must(t, os.RemoveAll(d.Path))
	must(t, os.Rename(gone, d.Path))
	must(t, d.Check())
}

func TestPathsStayInside(t *testing.T) {
	d := create(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o600))
	must(t, os.Mkdir(filepath.Join(d.Path, "dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(d.Path, "dir", "a.qcow2"), []byte("x"), 0o600))
	for link, to := range map[string]string{
		"out": outside, "secret": filepath.Join(outside, "secret"), "up": "../..", "in": "dir", "dangling": filepath.Join(outside, "new"),
		"marker": datastore.MarkerFile, "latch": "locks", "broken": "nothing",
	} {
		must(t, os.Symlink(to, filepath.Join(d.Path, link)))
	}
	for relative, inside := range map[string]string{
		"dir/a.qcow2": "dir/a.qcow2", "in/a.qcow2": "dir/a.qcow2", "new.raw": "new.raw", "dir/new.raw": "dir/new.raw", "in/new.raw": "dir/new.raw",
	} {
		got, err := d.Resolve(relative)
		must(t, err)
		if got != filepath.Join(d.Path, inside) {
			t.Errorf("%s is %s", relative, got)
		}
	}
	for _, relative := range []string{
		"", ".", "..", "../x", "/etc/passwd", "a/../../x", "dir/../dir/a.qcow2", "./a", "a//b", "a\x00b",
		"out/secret", "out/new", "secret", "up/x", datastore.MarkerFile, "locks/vm-a.lock.1", "locks", "marker", "latch/x",
		"dangling",
	} {
		if got, err := d.Resolve(relative); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q is %q, %v", relative, got, err)
		}
	}
	want(t, fault.NotFound, errOf(d.Resolve("broken")))
	want(t, fault.NotFound, errOf(d.Resolve("nodir/x")))
	want(t, fault.Invalid, errOf(d.Resolve("dir/a.qcow2/x")))

	size, err := d.Stat("in/a.qcow2")
	must(t, err)
	if size != 1 {
		t.Errorf("size %v", size)
	}
	want(t, fault.NotFound, errOf(d.Stat("nothing")))
	want(t, fault.Invalid, errOf(d.Stat("dir")))
	want(t, fault.Invalid, d.Remove("out/secret"))
	want(t, fault.Invalid, d.Chown("secret", datastore.Owner{UID: 1, GID: 1}))
	must(t, d.Remove("in/a.qcow2"))
	must(t, d.Remove("in/a.qcow2"))
	if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
		t.Error(err)
	}
}

// Whatever is asked for in a tree with links, nothing outside is ever named.
func TestResolveNeverLeaves(t *testing.T) {
	d := create(t)
	must(t, os.MkdirAll(filepath.Join(d.Path, "a/b"), 0o755))
	must(t, os.Symlink("../..", filepath.Join(d.Path, "a/b/c")))
	must(t, os.Symlink("/", filepath.Join(d.Path, "a/root")))
	must(t, os.Symlink("a/b/c/a", filepath.Join(d.Path, "loop")))
	must(t, os.Symlink("../loop/../..", filepath.Join(d.Path, "a/up")))
	part := rapid.SampledFrom([]string{"a", "b", "c", "root", "loop", "up", "..", ".", "", "etc", "locks", "new", datastore.MarkerFile})
	inside := 0
	rapid.Check(t, func(rt *rapid.T) {
		relative := strings.Join(rapid.SliceOfN(part, 1, 6).Draw(rt, "parts"), "/")
		got, err := d.Resolve(relative)
		if err != nil {
			return
		}
		inside++
		rest, ok := strings.CutPrefix(got, d.Path+"/")
		if !ok || strings.Contains(rest, "..") || strings.HasPrefix(rest, "locks") || strings.HasPrefix(rest, datastore.MarkerFile) {
			rt.Fatalf("%q leads to %s", relative, got)
		}
	})
	if inside == 0 {
		t.Error("no path was ever good: the test shows nothing")
	}
}

func TestDatastoreIsHandedToQEMUsUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ds")
	must(t, os.Mkdir(dir, 0o755)) // the administrator's, as mounted
	d, err := datastore.Create(dir, "shared", datastore.Owner{UID: -1, GID: 5678})
	if os.Geteuid() != 0 {
		want(t, fault.Denied, err)
		return
	}
	must(t, err)
	defer d.Close()
	owner := func(path string) (uint32, uint32) {
		info, err := os.Stat(path)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		return st.Uid, st.Gid
	}
	if uid, gid := owner(dir); uid != 0 || gid != 5678 {
		t.Errorf("it belongs to %d:%d", uid, gid)
	}
	info, err := os.Stat(dir)
	must(t, err)
	if got := info.Mode() & (os.ModePerm | os.ModeSticky); got != 0o775|os.ModeSticky {
		t.Errorf("its mode is %v", got)
	}
	if uid, _ := owner(filepath.Join(dir, "locks")); uid != 0 {
		t.Errorf("lock records belong to %d: QEMU could write them", uid)
	}
	must(t, os.WriteFile(filepath.Join(dir, "a.raw"), nil, 0o600))
	must(t, d.Chown("a.raw", datastore.Owner{UID: 1234, GID: 5678}))
	if uid, gid := owner(filepath.Join(dir, "a.raw")); uid != 1234 || gid != 5678 {
		t.Errorf("the image belongs to %d:%d", uid, gid)
	}
}

func TestSpaceAndFullDisk(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("mount a small tmpfs (run the tests as root): %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(mount, unix.MNT_DETACH)) })
	d, err := datastore.Create(mount, "small", datastore.KeepOwner)
	must(t, err)
	defer d.Close()
	free, total, err := d.Space()
	must(t, err)
	if total != 256<<10 || free <= 0 || free >= total {
		t.Errorf("free %v of %v", free, total)
	}
	must(t, d.Lock("vm-a", 1, "host-1"))
	_ = os.WriteFile(filepath.Join(mount, "filler"), make([]byte, 1<<20), 0o600) // as far as it goes
	if free, _, err = d.Space(); err != nil || free != 0 {
		t.Errorf("free %v, %v", free, err)
	}
	want(t, fault.NoResources, d.Lock("vm-a", 2, "host-1"))
	records, err := d.Locks("vm-a")
	must(t, err)
	if len(records) != 1 {
		t.Errorf("a lock that was refused left %+v", records)
	}
	must(t, os.Remove(filepath.Join(mount, "filler")))
	must(t, d.Lock("vm-a", 2, "host-1"))
	must(t, unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	want(t, fault.Unavailable, d.Lock("vm-a", 3, "host-1"))
}
