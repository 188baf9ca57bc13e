package oracle_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/oracle"
)

// two returns an oracle with the mounts of host-1 and host-2.
func two(t *testing.T, o oracle.Options) (*oracle.Oracle, [2]*oracle.Mount) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounts need root: run make test as root")
	}
	dir, err := os.MkdirTemp("/tmp", "oracle-") //nolint:usetesting // everybody may pass there, unlike in t.TempDir
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	all := oracle.New(filepath.Join(dir, "folder"), o)
	t.Cleanup(func() { must(t, all.Close()) })
	var mounts [2]*oracle.Mount
	for i, host := range []string{"host-1", "host-2"} {
		mounts[i], err = all.Mount(host, filepath.Join(dir, host))
		must(t, err)
	}
	return all, mounts
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// page returns an aligned block of one letter.
func page(t *testing.T, letter byte) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(b)) })
	for i := range b {
		b[i] = letter
	}
	return b
}

// entries are those of a kind.
func entries(o *oracle.Oracle, kind oracle.Kind) (found []oracle.Entry) {
	for _, e := range o.Log() {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

func TestAWriteIsSeenByAllAndInTheLog(t *testing.T) {
	all, m := two(t, oracle.Options{})
	path := func(i int) string { return filepath.Join(m[i].At, "a.raw") }
	must(t, os.WriteFile(path(0), nil, 0o600))
	f, err := os.OpenFile(path(0), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	defer f.Close()
	g, err := os.OpenFile(path(1), os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer g.Close()
	cached, err := os.Open(path(1))
	must(t, err)
	defer cached.Close()
	into := page(t, 0)
	for _, letter := range []byte("xy") { // the second time the other host must not read what it remembers
		_, err = f.WriteAt(page(t, letter), 8192)
		must(t, err)
		for _, reader := range []*os.File{g, cached} {
			if n, err := reader.ReadAt(into, 8192); n != 4096 || into[0] != letter || into[4095] != letter {
				t.Errorf("host-2 read %d bytes, %q: %v", n, into[:1], err)
			}
		}
	}
	if info, err := os.Stat(path(1)); err != nil || info.Size() != 12288 {
		t.Errorf("its size is %d: %v", info.Size(), err)
	}
	must(t, f.Truncate(4096))
	wrote, sized := entries(all, oracle.Wrote), entries(all, oracle.Sized)
	if len(wrote) != 2 || wrote[0].Host != "host-1" || wrote[0].File != "a.raw" || wrote[0].Offset != 8192 || wrote[0].Length != 4096 ||
		wrote[0].Process != os.Getpid() || !strings.HasPrefix(wrote[0].Program, "oracle.test") {
		t.Errorf("the log has %v", wrote)
	}
	if last := sized[len(sized)-1]; last.Offset != 4096 || last.Process != os.Getpid() {
		t.Errorf("the log has %v", sized)
	}
}

// A child that had it would keep the mount alive after our death, and could answer for it.
func TestNoChildHasTheMountsOwnDescriptor(t *testing.T) {
	_, _ = two(t, oracle.Options{})
	out, err := exec.CommandContext(t.Context(), "ls", "-l", "/proc/self/fd").Output()
	if err != nil || strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestFilesBelongToWhoMadeThem(t *testing.T) {
	_, m := two(t, oracle.Options{})
	must(t, os.Chmod(m[0].At, 0o777))
	// The shell goes there itself: Go would change the folder between fork and exec, when all of this process, which has to answer, may have to wait.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "cd "+m[0].At+" && umask 077; echo x >a; cat a; ! cat secret")
	must(t, os.WriteFile(filepath.Join(m[0].At, "secret"), []byte("root's"), 0o600))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "root's") {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(filepath.Join(m[1].At, "a"))
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 65534 || info.Mode().Perm() != 0o600 {
		t.Errorf("it is user %d's, mode %v", st.Uid, info.Mode())
	}
}

// The story: two hosts take the lock records of a VM, again and again, at the same time. One gets each.
func TestLockRecordsAreTakenOnce(t *testing.T) {
	all, m := two(t, oracle.Options{})
	first, err := datastore.Create(m[0].At, "shared", datastore.KeepOwner)
	must(t, err)
	defer first.Close()
	second, err := datastore.Open(m[1].At)
	must(t, err)
	defer second.Close()
	if first.ID != second.ID {
		t.Fatalf("they are %s and %s", first.ID, second.ID)
	}
	for generation := inventory.Generation(1); generation <= 20; generation++ {
		var both sync.WaitGroup
		var errs [2]error
		for i, d := range []*datastore.Datastore{first, second} {
			both.Go(func() { errs[i] = d.Lock("vm-a", generation, inventory.HostID(m[i].Host)) })
		}
		both.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		if errs[winner] != nil || !fault.Is(errs[1-winner], fault.Exists) {
			t.Fatalf("generation %d: %v", generation, errs)
		}
		locked := entries(all, oracle.Locked)
		if len(locked) != int(generation) || locked[generation-1].Host != m[winner].Host || locked[generation-1].Generation != uint64(generation) {
			t.Fatalf("the log has %v", locked)
		}
		must(t, second.Prune("vm-a", generation))
		records, err := first.Locks("vm-a")
		must(t, err)
		if len(records) != 1 || string(records[0].Host) != m[winner].Host {
			t.Fatalf("%+v", records)
		}
	}
}

// lock takes a lock as QEMU does, or says that another one has it.
func lock(f *os.File, kind int16) error {
	return syscall.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &syscall.Flock_t{Type: kind, Start: 200, Len: 1})
}

// image makes a file and opens it by both mounts.
func image(t *testing.T, m [2]*oracle.Mount) (files [2]*os.File) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(m[0].At, "a.raw"), make([]byte, 4096), 0o600))
	for i := range m {
		var err error
		files[i], err = os.OpenFile(filepath.Join(m[i].At, "a.raw"), os.O_RDWR, 0)
		must(t, err)
		t.Cleanup(func() { _ = files[i].Close() }) // closed already in some tests
	}
	return files
}

func TestLocksMeetAcrossMounts(t *testing.T) {
	_, m := two(t, oracle.Options{})
	f := image(t, m)
	must(t, lock(f[0], unix.F_RDLCK))
	must(t, lock(f[1], unix.F_RDLCK))
	if err := lock(f[1], unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a lock that another one stands against: %v", err)
	}
	ask := syscall.Flock_t{Type: unix.F_WRLCK, Start: 200, Len: 1}
	must(t, syscall.FcntlFlock(f[1].Fd(), unix.F_OFD_GETLK, &ask))
	if ask.Type != unix.F_RDLCK {
		t.Errorf("what stands against it is of type %d", ask.Type)
	}
	must(t, f[0].Close()) // the end of the file is the end of its locks; it reaches the storage a little later
	eventually(t, func() bool { return lock(f[1], unix.F_WRLCK) == nil })
}

// eventually asks until it is so; the kernel has no event for what is asked.
func eventually(t *testing.T, so func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to be")
		}
	}
}

// The story: a host is cut off and its locks run out; another one takes the image. When the first is back, what it writes is refused where
// storage arbitrates, and reaches the disk where it does not. A file that it opens anew is good.
func TestACutOffHostLosesItsLocks(t *testing.T) {
	for _, pass := range []bool{false, true} {
		all, m := two(t, oracle.Options{LockLife: 50 * time.Millisecond, LostLocksPass: pass})
		f := image(t, m)
		must(t, lock(f[0], unix.F_WRLCK))
		if err := lock(f[1], unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("while the first is there: %v", err)
		}
		m[0].Set(oracle.Failing)
		eventually(t, func() bool { return lock(f[1], unix.F_WRLCK) == nil })
		_, err := f[1].WriteAt([]byte("new"), 0)
		must(t, err)
		m[0].Set(oracle.Fine)
		_, err = f[0].WriteAt([]byte("old"), 0)
		denied := entries(all, oracle.Denied)
		if pass && (err != nil || len(denied) != 0) || !pass && (!errors.Is(err, unix.EIO) || len(denied) != 1) {
			t.Errorf("a late write of the old one, passing %v: %v, %v", pass, err, denied)
		}
		if err := lock(f[0], unix.F_RDLCK); !errors.Is(err, unix.EIO) {
			t.Errorf("a lock of a file that lost one: %v", err)
		}
		must(t, f[0].Close())
		again, err := os.OpenFile(filepath.Join(m[0].At, "a.raw"), os.O_RDWR, 0)
		must(t, err)
		if _, err = again.WriteAt([]byte("new"), 0); err != nil {
			t.Errorf("a file opened anew: %v", err)
		}
		must(t, again.Close())
	}
}

// The story: a host that is back in time has lost nothing, and one whose processes ended while it was cut off holds its locks until they run out.
func TestLocksLastAsLongAsTheyShould(t *testing.T) {
	_, m := two(t, oracle.Options{LockLife: time.Minute})
	f := image(t, m)
	must(t, lock(f[0], unix.F_WRLCK))
	m[0].Set(oracle.Killable)
	m[0].Set(oracle.Fine)
	_, err := f[0].WriteAt([]byte("x"), 0)
	must(t, err)
	m[0].Set(oracle.Gone)
	must(t, f[0].Close())
	if err := lock(f[1], unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("right after the reset: %v", err)
	}
	m[0].Set(oracle.Fine) // the new kernel says so to the storage
	eventually(t, func() bool { return lock(f[1], unix.F_WRLCK) == nil })
}

// The story: a write waits for the storage. Of a host that is heard of again it is done; of one that is reset it is not, ever; and where it can be
// killed it is not done either.
func TestWhatWaitsIsDoneOrNot(t *testing.T) {
	for _, c := range []struct {
		trouble, then oracle.Trouble
		kill, done    bool
	}{
		{oracle.Stalled, oracle.Fine, false, true},
		{oracle.Stalled, oracle.Gone, false, false},
		{oracle.Stalled, oracle.Failing, false, false},
		{oracle.Stalled, oracle.Fine, true, true}, // killed, but it cannot end before it is answered
		{oracle.Killable, oracle.Fine, true, false},
	} {
		all, m := two(t, oracle.Options{})
		f := image(t, m)
		must(t, f[1].Close())
		m[0].Set(c.trouble)
		ctx, kill := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, "dd", "conv=notrunc", "bs=1", "count=4", "status=none")
		cmd.Stdin, cmd.Stdout = strings.NewReader("late"), f[0]
		must(t, cmd.Start())
		eventually(t, func() bool { return m[0].Waiting() == 1 })
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if c.kill {
			kill()
		}
		if c.kill && c.trouble == oracle.Killable {
			<-ended
		} else {
			select {
			case err := <-ended:
				t.Errorf("%+v: it ended while the storage was away: %v", c, err)
			case <-time.After(50 * time.Millisecond): // nothing is to happen
			}
		}
		m[0].Set(c.then)
		if !c.kill || c.trouble != oracle.Killable {
			if err := <-ended; (err == nil) != (c.done && !c.kill) {
				t.Errorf("%+v: dd says %v", c, err)
			}
		}
		kill()
		if done := len(entries(all, oracle.Wrote)) > 1; done != c.done { // the first made the image
			t.Errorf("%+v: the log says %v", c, all.Log())
		}
	}
}

// state is the kernel's letter for what a process does.
func state(pid int) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}

func TestASlowMountIsSlowAndOthersAreNot(t *testing.T) {
	_, m := two(t, oracle.Options{})
	f := image(t, m)
	m[0].Slow(30 * time.Millisecond)
	took := func(f *os.File) time.Duration {
		begin := time.Now()
		_, err := f.WriteAt([]byte("x"), 0)
		must(t, err)
		return time.Since(begin)
	}
	if slow := took(f[0]); slow < 30*time.Millisecond {
		t.Errorf("a slow write took %v", slow)
	}
	other := took(f[1])
	for range 20 { // the machine may be busy, but not each time
		other = min(other, took(f[1]))
	}
	if other >= 30*time.Millisecond {
		t.Errorf("a write on the other mount takes %v at least", other)
	}
	m[0].Slow(0)
	must(t, f[0].Close())
}

func TestAHostThatWasResetIsNotHealed(t *testing.T) {
	_, m := two(t, oracle.Options{})
	for trouble, want := range map[oracle.Trouble]oracle.Trouble{oracle.Stalled: oracle.Fine, oracle.Failing: oracle.Fine, oracle.Gone: oracle.Gone} {
		m[0].Set(trouble)
		if m[0].Heal(); m[0].Now() != want {
			t.Errorf("a mount that was %s and is healed is %s, and should be %s", trouble, m[0].Now(), want)
		}
	}
	m[0].Set(oracle.Fine)
}

// The story: QEMU opens an image as Godwit has it do, and a second one on another host cannot while the first has it.
func TestQEMUHoldsItsImage(t *testing.T) {
	all, m := two(t, oracle.Options{})
	must(t, os.WriteFile(filepath.Join(m[0].At, "a.raw"), make([]byte, 1<<20), 0o600))
	start := func(i int) (*exec.Cmd, *strings.Builder) {
		cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-machine", "q35", "-nodefaults", "-display", "none", "-S", "-blockdev",
			"driver=file,node-name=f,filename="+filepath.Join(m[i].At, "a.raw")+",cache.direct=on,locking=on,aio=threads,discard=unmap",
			"-blockdev", "driver=raw,node-name=d,file=f,cache.direct=on", "-device", "virtio-blk-pci,drive=d")
		var said strings.Builder
		cmd.Stderr = &said
		must(t, cmd.Start())
		return cmd, &said
	}
	first, said := start(0)
	eventually(t, func() bool { // it has its lock: nobody else can take it
		f, err := os.OpenFile(filepath.Join(m[1].At, "a.raw"), os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		ask := syscall.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}
		must(t, syscall.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &ask))
		if ended := state(first.Process.Pid); ended == "Z" {
			t.Fatal(said)
		}
		return ask.Type != unix.F_UNLCK
	})
	second, said := start(1)
	if err := second.Wait(); err == nil || !strings.Contains(said.String(), "lock") {
		t.Errorf("the second QEMU: %v: %s", err, said)
	}
	must(t, first.Process.Kill())
	_ = first.Wait() // killed
	if opened := entries(all, oracle.Opened); !strings.HasPrefix(opened[len(opened)-1].Program, "qemu-system") && !strings.HasPrefix(opened[len(opened)-2].Program, "qemu-system") {
		t.Errorf("the log has %v", opened)
	}
}

// The story: the storage has no room for one host. What is there can be read and removed, and not written, and the other host notices
// nothing.
func TestFull(t *testing.T) {
	_, mounts := two(t, oracle.Options{})
	must(t, os.WriteFile(filepath.Join(mounts[0].At, "there"), []byte("old"), 0o600))
	mounts[1].Set(oracle.Full)
	if text, err := os.ReadFile(filepath.Join(mounts[1].At, "there")); err != nil || string(text) != "old" {
		t.Errorf("%q, %v", text, err)
	}
	for name, err := range map[string]error{
		"a new file":   os.WriteFile(filepath.Join(mounts[1].At, "new"), nil, 0o600),
		"a new name":   os.Link(filepath.Join(mounts[1].At, "there"), filepath.Join(mounts[1].At, "other")),
		"a new folder": os.Mkdir(filepath.Join(mounts[1].At, "folder"), 0o700),
		"a write":      os.WriteFile(filepath.Join(mounts[1].At, "there"), []byte("more"), 0o600),
	} {
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, not %v", name, err, syscall.ENOSPC)
		}
	}
	must(t, os.WriteFile(filepath.Join(mounts[0].At, "new"), []byte("new"), 0o600))
	must(t, os.Remove(filepath.Join(mounts[1].At, "there")))
	mounts[1].Set(oracle.Fine)
	must(t, os.WriteFile(filepath.Join(mounts[1].At, "new"), []byte("newer"), 0o600))
}
