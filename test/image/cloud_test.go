package image

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/godwit-vm/godwit/test/lab"
)

var image = flag.String("image", "", "raw cloud image to test with, as test/image/make writes it; without one nothing is tested")

// The bounds of the test: an emulated guest takes a minute or two to boot, and cloud-init another.
const (
	stepMax = 2 * time.Minute
	bootMax = 25 * time.Minute
)

// The segment has room for one guest, so its address is known before it asks for one, and a forward can lead there.
const (
	subnet = "10.10.0.0/30"
	guest  = "10.10.0.2"
)

// The story: an administrator downloads a cloud image, imports it, makes a VM of it with their key and a name, and logs in. The guest has that
// name, the size of disk that was asked for, and nobody can log in with a password. It moves to another host while they are logged in.
func TestCloudImage(t *testing.T) {
	if *image == "" {
		t.Skip("no cloud image is given, so none is tested: run make imagetest, or give one with -image")
	}
	binary := filepath.Join(t.TempDir(), "godwit")
	if err := lab.Build(binary); err != nil {
		t.Fatal(err)
	}
	c, err := lab.Start(t.Context(), lab.Options{Binary: binary, Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	do := func(args ...string) string {
		t.Helper()
		ctx, done := context.WithTimeout(t.Context(), stepMax)
		defer done()
		begun := time.Now()
		out, err := c.Hosts[0].Godwit(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%6.2f s  godwit %s", time.Since(begun).Seconds(), strings.Join(args[:2], " "))
		return string(out)
	}
	signer, public := newKey(t, c.Dir)
	door := c.Hosts[0].Address + ":2222"
	do("network", "create", "lan", "--subnet", subnet, "--gateway", "host-1", "--forward", door+"="+guest+":22")
	do("image", "import", *image, "debian-12.qcow2", "--source-format", "raw")
	do("vm", "create", "web-1", "--image", "debian-12.qcow2", "--size", "4G", "--cpus", "2", "--memory", "1G", "--ssh-key", public,
		"--hostname", "www.example.org", "--nic", "lan", "--start")
	t.Log(do("image", "ls"))
	go console(t.Context(), c.Hosts[0])

	begun := time.Now()
	config := &ssh.ClientConfig{
		User: "debian", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: 30 * time.Second,
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:gosec // the guest made it a minute ago
	}
	var client *ssh.Client
	if err := lab.Until(t.Context(), bootMax, func() error {
		client, err = dial(t.Context(), door, config)
		return err
	}); err != nil {
		t.Fatalf("nobody can log in: %v\n%s", err, said(c))
	}
	defer client.Close()
	t.Logf("%6.2f s  from start to login", time.Since(begun).Seconds())
	in := func(command string) string {
		t.Helper()
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		out, err := session.CombinedOutput(command)
		if err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	t.Log(in("cloud-init status --wait --long; uptime"))
	for command, want := range map[string]string{
		"hostname": "www", "hostname -f": "www.example.org", "id -un": "debian", "sudo id -un": "root",
		"cloud-id": "nocloud", "cloud-init status | tail -n 1": "status: done",
		"sudo grep -c '^[^:]*:[$]' /etc/shadow || true": "0",
		"ip -o -4 addr show eth0 | grep -c " + guest:    "1",
	} {
		if got := in(command); got != want {
			t.Errorf("%s says %q, not %q", command, got, want)
		}
	}
	if got := in("lsblk -bdno SIZE,RO,LABEL"); !strings.Contains(got, fmt.Sprint(int64(4)<<30)) || !strings.Contains(got, "1 cidata") {
		t.Errorf("its disks are:\n%s", got)
	}
	wrong := *config
	wrong.Auth = []ssh.AuthMethod{ssh.Password("debian")}
	if other, err := dial(t.Context(), door, &wrong); err == nil {
		_ = other.Close() // it should not be
		t.Error("a password lets in")
	}
	before := in("cat /proc/sys/kernel/random/boot_id; sudo sha256sum /boot/vmlinuz-*")
	do("vm", "migrate", "web-1", "--to", "host-2")
	if after := in("sudo sh -c 'echo 3 >/proc/sys/vm/drop_caches'; cat /proc/sys/kernel/random/boot_id; sudo sha256sum /boot/vmlinuz-*"); after != before {
		t.Errorf("after the migration the guest says\n%s\nand not\n%s", after, before)
	}
	do("vm", "stop", "web-1", "--force")
	do("vm", "destroy", "web-1", "--delete-disks")
	if left := do("image", "ls"); strings.Contains(left, "web-1") {
		t.Errorf("left on the datastore:\n%s", left)
	}
}

// newKey makes a key pair for one test and returns it with the file of its public half.
func newKey(t *testing.T, dir string) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "key.pub")
	if err := os.WriteFile(path, ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	return signer, path
}

// dial logs in once.
func dial(ctx context.Context, address string, config *ssh.ClientConfig) (*ssh.Client, error) {
	dialer := net.Dialer{Timeout: config.Timeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(config.Timeout)); err != nil {
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		_ = conn.Close() // err says why
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), conn.SetDeadline(time.Time{})
}

// console keeps what the guest says on its serial console.
func console(ctx context.Context, h *lab.Host) {
	log, err := os.Create(filepath.Join(filepath.Dir(h.Data), "console"))
	if err != nil {
		return
	}
	defer log.Close()
	cmd := h.Interactive(ctx, "vm", "console", "web-1")
	cmd.Stdout = log
	in, err := cmd.StdinPipe()
	if err != nil {
		return
	}
	defer in.Close()
	_ = cmd.Run() // it ends with the VM or the test
}

// said is the end of what the guest said.
func said(c *lab.Cluster) string {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(c.Hosts[0].Data), "console"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-6000):])
}
