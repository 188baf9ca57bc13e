package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/test/lab"
)

// The image of these tests and the disks made of it.
const (
	imageBytes = 2 << 20
	diskBytes  = 4 << 20
	publicKey  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR admin@desk"
)

// gallery is a cluster with an image that VMs are made of.
type gallery struct {
	*lab.Cluster

	linux   guest.Linux
	disk    []byte // what a clone of the image holds before anybody writes to it
	key     string // file with a public key
	segment *lab.Segment
}

func openGallery(t *testing.T) *gallery {
	t.Helper()
	g := &gallery{Cluster: startCluster(t, lab.Options{Hosts: 2}), disk: make([]byte, diskBytes)}
	var err error
	if g.linux, err = guest.Images(step(t)); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{g.linux.Kernel: "vmlinuz", g.linux.Initrd: "initrd"} {
		if err := g.Put(from, to); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = rand.NewChaCha8([32]byte{7}).Read(g.disk[:imageBytes])
	source := filepath.Join(g.Dir, "source.raw")
	g.key = filepath.Join(g.Dir, "key.pub")
	empty := filepath.Join(g.Datastore, "empty")
	for path, text := range map[string][]byte{source: g.disk[:imageBytes], empty: nil, g.key: []byte("# mine\n" + publicKey + "\n")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.do(t, 1, "image", "import", source, "base.qcow2", "--source-format", "raw", "--sha256", sum(g.disk[:imageBytes]))
	g.do(t, 1, "network", "create", lab.Network, "--subnet", lab.Subnet, "--gateway", "host-1")
	if g.segment, err = g.Hosts[0].JoinSegment(step(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.segment.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// do runs a command that must succeed at the host of that number.
func (g *gallery) do(t *testing.T, host int, args ...string) string {
	t.Helper()
	out, err := g.Hosts[host-1].Godwit(step(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// no runs a command that must be refused with the code and all of the words, and changes no file.
func (g *gallery) no(t *testing.T, host, code int, says []string, args ...string) {
	t.Helper()
	before := g.files(t)
	_, err := g.Hosts[host-1].Godwit(step(t), args...)
	if lab.ExitCode(err) != code {
		t.Errorf("godwit %s: exit code %d, not %d: %v", strings.Join(args, " "), lab.ExitCode(err), code, err)
		return
	}
	for _, words := range says {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("godwit %s: nothing is said of %q: %v", strings.Join(args, " "), words, err)
		}
	}
	if after := g.files(t); !slices.Equal(before, after) {
		t.Errorf("godwit %s: it was refused, and changed files:\n%q\n%q", strings.Join(args, " "), before, after)
	}
}

// files lists the datastore: names, sizes, modes, owners; hidden ones too, lock records not.
func (g *gallery) files(t *testing.T) []string {
	t.Helper()
	var all []string
	if err := filepath.WalkDir(g.Datastore, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && d.Name() == "locks" {
				return filepath.SkipDir
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		all = append(all, fmt.Sprintf("%s %d %v %d", filepath.Base(path), info.Size(), info.Mode(), st.Uid))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// has reports whether the datastore has a file of the name.
func (g *gallery) has(t *testing.T, name string) bool {
	t.Helper()
	return slices.ContainsFunc(g.files(t), func(line string) bool { return strings.HasPrefix(line, name+" ") })
}

// fromImage is the command that makes a VM with a clone of the base that runs the Linux guest.
func (g *gallery) fromImage(name string, more ...string) []string {
	return append([]string{
		"vm", "create", name, "--image", "base.qcow2", "--size", fmt.Sprint(diskBytes), "--memory", "192M", "--nic", lab.Network, "--ssh-key", g.key,
		"--kernel", "vmlinuz", "--initrd", "initrd", "--cmdline", g.linux.Cmdline,
	}, more...)
}

// speak returns the control connection of a VM's guest once it has booted.
func (g *gallery) speak(t *testing.T, name string) *control.Client {
	t.Helper()
	ip, err := g.Hosts[0].WaitAddress(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.segment.Control(step(t), ip)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // nothing is left to say
	return c
}

// diskHolds demands that the guest's disk holds those bytes.
func diskHolds(t *testing.T, c *control.Client, want []byte) {
	t.Helper()
	d, err := c.Disk(step(t), "vda")
	if err != nil {
		t.Fatal(err)
	}
	if d.Size != int64(len(want)) || d.SHA256 != sum(want) || d.ReadOnly {
		t.Errorf("the disk is %+v, not %d bytes with the sum %s", d, len(want), sum(want))
	}
}

// writes makes the guest write, and notes in disk what it should hold then.
func writes(t *testing.T, c *control.Client, disk []byte, at int) {
	t.Helper()
	if _, err := c.WriteDisk(step(t), "vda", int64(at)); err != nil {
		t.Fatal(err)
	}
	copy(disk[at:], control.Pattern(int64(at)))
	diskHolds(t, c, disk)
}

// The story: one image, two machines made of it on two hosts. Each finds its seed, reads the image, keeps what it writes through a live migration,
// and never touches the other or the image. The image cannot be taken away from under them; when they go, what was made for them goes.
func TestVMsFromAnImage(t *testing.T) {
	t.Parallel()
	g := openGallery(t)
	base, err := os.ReadFile(filepath.Join(g.Datastore, "base.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	before := g.files(t)
	g.do(t, 1, g.fromImage("web-1", "--hostname", "www.example.org", "--start")...)
	g.do(t, 2, g.fromImage("web-2", "--start")...)
	web1, err := g.Hosts[0].VM(step(t), "web-1")
	if err != nil {
		t.Fatal(err)
	}
	one, two := g.speak(t, "web-1"), g.speak(t, "web-2")
	found, err := one.Seed(step(t))
	if err != nil {
		t.Fatal(err)
	}
	if found.Instance != web1.GetId() || found.Hostname != "www.example.org" || !slices.Equal(found.Keys, []string{publicKey}) || len(found.Files) != 3 {
		t.Errorf("the guest finds the seed %+v", found)
	}
	if other, err := two.Seed(step(t)); err != nil || other.Hostname != "web-2" || other.Instance == found.Instance {
		t.Errorf("the other finds the seed %+v, %v", other, err)
	}
	if seed, err := one.Disk(step(t), found.Disk); err != nil || !seed.ReadOnly {
		t.Errorf("the guest may write to its seed: %+v, %v", seed, err)
	}
	first, second := slices.Clone(g.disk), slices.Clone(g.disk)
	diskHolds(t, one, first)
	diskHolds(t, two, second)
	writes(t, one, first, 1<<19)           // over the image's bytes
	writes(t, one, first, diskBytes-1<<16) // beyond them, to the disk's end
	writes(t, two, second, 1<<20)

	t.Run("it moves", func(t *testing.T) {
		g.do(t, 1, "vm", "migrate", "web-1", "--to", "host-2")
		diskHolds(t, one, first)
		writes(t, one, first, 3<<19)
		if again, err := one.Seed(step(t)); err != nil || again.Disk != found.Disk || again.Files["user-data"] != found.Files["user-data"] {
			t.Errorf("the seed is now %+v, %v", again, err)
		}
		g.do(t, 2, "vm", "migrate", "web-1", "--to", "host-1")
		diskHolds(t, one, first)
		diskHolds(t, two, second)
	})
	t.Run("what is needed stays", func(t *testing.T) {
		all := &godwitv1.ListImagesResponse{}
		if err := g.Hosts[1].Read(step(t), all, "image", "ls"); err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for _, i := range all.GetImages() {
			seen[i.GetFile().GetPath()] = fmt.Sprintf("%s %d %s %s", i.GetFormat(), i.GetSize(), i.GetVm(), i.GetBacking().GetPath())
		}
		for path, want := range map[string]string{
			"base.qcow2": fmt.Sprintf("qcow2 %d  ", imageBytes), "web-1-disk0.qcow2": fmt.Sprintf("qcow2 %d web-1 base.qcow2", diskBytes),
			"vmlinuz": " 0 web-1, web-2 ",
		} {
			if seen[path] != want {
				t.Errorf("%s is listed as %q, not %q", path, seen[path], want)
			}
		}
		clones := []string{"web-1-disk0.qcow2 (disk0 of vm web-1, which is running)", "web-2-disk0.qcow2 (disk0 of vm web-2, which is running)"}
		g.no(t, 1, 4, clones, "image", "delete", "base.qcow2")
		g.no(t, 2, 4, clones, "image", "grow", "base.qcow2", "1G")
		g.no(t, 1, 4, clones, "vm", "create", "web-3", "--disk", "base.qcow2")
		g.no(t, 1, 4, []string{"disk0 of vm web-1, which is running"}, "image", "delete", "web-1-disk0.qcow2")
		g.no(t, 1, 4, []string{"seed of vm web-2"}, "image", "delete", "web-2-seed.iso")
		g.no(t, 1, 4, []string{"the kernel of vm web-1", "the kernel of vm web-2"}, "image", "delete", "vmlinuz")
		g.no(t, 1, 4, []string{"may write to it"}, "image", "clone", "web-1-disk0.qcow2", "x.qcow2")
		g.no(t, 1, 4, []string{"disk0 of vm web-1, which is running"}, "image", "clone", "web-1-disk0.qcow2", "x.qcow2", "--full")
		g.no(t, 1, 4, []string{"there is such a file already"}, "image", "create", "base.qcow2", "1G")
	})
	t.Run("what cannot be made leaves nothing", func(t *testing.T) {
		g.no(t, 1, 4, []string{"one of that name"}, g.fromImage("web-1")...)
		g.no(t, 1, 2, []string{"cut it off"}, "vm", "create", "web-3", "--image", "base.qcow2", "--size", "1M")
		// QEMU itself refuses a kernel without a byte, when all is made and the VM is in the inventory.
		g.no(t, 1, 4, []string{"qemu has exited"}, g.fromImage("web-3", "--start", "--kernel", "empty")...)
		if vms := g.do(t, 1, "vm", "ls"); strings.Contains(vms, "web-3") {
			t.Errorf("a VM that was not made is there:\n%s", vms)
		}
	})
	t.Run("what was made goes", func(t *testing.T) {
		g.do(t, 1, g.fromImage("web-4", "--full")...)
		full := &godwitv1.Image{}
		if err := g.Hosts[0].Read(step(t), full, "image", "info", "web-4-disk0.qcow2"); err != nil || full.GetBacking() != nil && full.GetBacking().GetPath() != "" || full.GetSize() != diskBytes {
			t.Errorf("the full copy is %v, %v", full, err)
		}
		for _, name := range []string{"web-1", "web-2"} {
			g.do(t, 1, "vm", "stop", name, "--force")
		}
		g.do(t, 1, "vm", "destroy", "web-1", "--delete-disks")
		g.do(t, 1, "vm", "destroy", "web-4", "--delete-disks")
		g.do(t, 1, "vm", "destroy", "web-2")
		if g.has(t, "web-2-seed.iso") || !g.has(t, "web-2-disk0.qcow2") {
			t.Errorf("after destroying with its disks kept there are %q", g.files(t))
		}
		g.no(t, 1, 4, []string{"web-2-disk0.qcow2 is a thin clone of it"}, "image", "delete", "base.qcow2")
		g.do(t, 2, "image", "delete", "web-2-disk0.qcow2")
		if after := g.files(t); !slices.Equal(before, after) {
			t.Errorf("the datastore had\n%q\nand has\n%q", before, after)
		}
		if now, err := os.ReadFile(filepath.Join(g.Datastore, "base.qcow2")); err != nil || sum(now) != sum(base) {
			t.Errorf("the image was changed: %v", err)
		}
	})
	t.Run("from a host without the datastore", func(t *testing.T) { g.fromAfar(t) })
	t.Run("an agent is killed in the middle of a download", func(t *testing.T) { g.killed(t) })
}

// fromAfar asks a host that has another datastore.
func (g *gallery) fromAfar(t *testing.T) {
	other := filepath.Join(g.Dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := g.AddHost(step(t), "other="+other+",local"); err != nil {
		t.Fatal(err)
	}
	if said := g.do(t, 3, "image", "ls", "shared"); !strings.Contains(said, "base.qcow2") {
		t.Errorf("host-3 sees on the datastore:\n%s", said)
	}
	g.do(t, 3, "image", "clone", "base.qcow2@shared", "far.qcow2@shared")
	g.do(t, 3, "image", "delete", "far.qcow2@shared")
	g.no(t, 3, 3, []string{`host host-3 has no datastore "shared"`}, "image", "import", filepath.Join(g.Dir, "source.raw"), "x.qcow2@shared", "--source-format", "raw")
	g.no(t, 3, 3, []string{`no host has a datastore "nowhere"`}, "image", "ls", "nowhere")
}

// killed kills the agent while an import goes on, and demands that the next one cleans up behind it.
func (g *gallery) killed(t *testing.T) {
	begun := make(chan struct{})
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > 1 { // the command repeats its call once after the agent was lost
			http.Error(w, "no more", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(g.disk)
		w.(http.Flusher).Flush()
		close(begun)
		<-r.Context().Done()
	}))
	defer server.Close()
	before := g.files(t)
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), stepMax)
	defer cancel()
	go func() {
		_, err := g.Hosts[0].Godwit(ctx, "image", "import", server.URL+"/x.raw", "x.qcow2", "--source-format", "raw")
		ended <- err
	}()
	select {
	case <-begun:
	case err := <-ended:
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		if now := g.files(t); len(now) != len(before)+1 {
			return fmt.Errorf("the download is not on the datastore: %q", now)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	pid, err := g.Hosts[0].PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; lab.ExitCode(err) != 6 {
		t.Errorf("the import ended with %v", err)
	}
	if err := g.Hosts[0].WaitUp(step(t)); err != nil {
		t.Fatal(err)
	}
	if after := g.files(t); !slices.Equal(before, after) {
		t.Errorf("the datastore had\n%q\nand has\n%q", before, after)
	}
}
