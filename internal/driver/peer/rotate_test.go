package peer_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// joinIn is join with a folder that the test knows.
func (c *cluster) joinIn(t *testing.T, host inventory.HostID) (*peer.Identity, string) {
	t.Helper()
	request, certificate := c.sign(t, host)
	dir := t.TempDir()
	id, err := request.Save(dir, c.ca.Certificate(), certificate)
	must(t, err)
	return id, dir
}

func (c *cluster) sign(t *testing.T, host inventory.HostID) (*peer.Request, []byte) {
	t.Helper()
	request, err := peer.NewRequest(host)
	must(t, err)
	certificate, err := c.ca.Sign(request.CSR(), host, []string{"127.0.0.1"})
	must(t, err)
	return request, certificate
}

// The story: two processes of a host have its identity open, one of them rotates it. New connections of both show the new certificate, as
// server and as client, without a restart.
func TestRotationIsSeenByEveryProcess(t *testing.T) {
	c := newCluster(t, "alps")
	server, dir := c.joinIn(t, "host-2")
	address, _ := serve(t, &peer.Server{Identity: server, HTTP: hello})
	dialer := peer.NewDialer(c.first)
	defer dialer.Close()
	client := dialer.HTTPClient("host-2", address)
	if _, body, err := get(t, client, "https://"+address+"/"); err != nil || body != "host-1 true HTTP/2.0" {
		t.Fatalf("%q (%v)", body, err)
	}
	was, err := dialer.Expires(t.Context(), "host-2", address)
	must(t, err)
	if !was.Equal(server.Expires()) {
		t.Errorf("it shows %v and has %v", was, server.Expires())
	}
	// Certificates count in seconds: the next one must be another one.
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1100 * time.Millisecond)))

	other, err := peer.Load(dir) // as another process
	must(t, err)
	request, certificate := c.sign(t, "host-2")
	must(t, other.Rotate(request, certificate))
	for what, now := range map[string]time.Time{"who rotated": other.Expires(), "the other process": server.Expires()} {
		if !now.After(was) {
			t.Errorf("%s still shows the certificate that ends at %v", what, now)
		}
	}
	now, err := dialer.Expires(t.Context(), "host-2", address)
	must(t, err)
	if !now.Equal(server.Expires()) || !now.After(was) {
		t.Errorf("the server shows %v", now)
	}
	if _, _, err := get(t, client, "https://"+address+"/"); err != nil {
		t.Errorf("the connection of before: %v", err)
	}
	back := peer.NewDialer(server)
	defer back.Close()
	home, _ := serve(t, &peer.Server{Identity: c.first, HTTP: hello})
	if _, body, err := get(t, back.HTTPClient("host-1", home), "https://"+home+"/"); err != nil || body != "host-2 true HTTP/2.0" {
		t.Errorf("as client: %q (%v)", body, err)
	}
	if at := server.RenewAt(); !at.After(time.Now().Add(peer.HostLifetime/2)) || !at.Before(server.Expires()) {
		t.Errorf("it is to be renewed at %v", at)
	}
}

// A host that loses power in the middle has the old pair or the new one.
func TestRotationMayBeCutOff(t *testing.T) {
	c := newCluster(t, "alps")
	request, certificate := c.sign(t, "host-2")
	for _, cut := range []string{"before the certificate", "before the key", "never"} {
		t.Run(cut, func(t *testing.T) {
			id, dir := c.joinIn(t, "host-2")
			was := id.Certificate().Serial
			kept := map[string][]byte{}
			for _, name := range []string{peer.KeyFile, peer.CertificateFile} {
				b, err := os.ReadFile(filepath.Join(dir, name))
				must(t, err)
				kept[name] = b
			}
			must(t, id.Rotate(request, certificate))
			newKey, err := os.ReadFile(filepath.Join(dir, peer.KeyFile))
			must(t, err)
			switch cut {
			case "before the certificate":
				must(t, os.WriteFile(filepath.Join(dir, peer.CertificateFile), kept[peer.CertificateFile], 0o644))
				fallthrough
			case "before the key":
				must(t, os.WriteFile(filepath.Join(dir, peer.KeyFile), kept[peer.KeyFile], 0o600))
				must(t, os.WriteFile(filepath.Join(dir, peer.KeyFile+".next"), newKey, 0o600))
			}
			again, err := peer.Load(dir)
			must(t, err)
			if now := again.Certificate().Serial; (now == was) != (cut == "before the certificate") {
				t.Errorf("it has the certificate %s, and had %s before", now, was)
			}
			if key, err := os.ReadFile(filepath.Join(dir, peer.KeyFile)); err != nil || (string(key) == string(newKey)) != (cut != "before the certificate") {
				t.Errorf("the rotation was not ended (%v)", err)
			}
			info, err := os.Stat(filepath.Join(dir, peer.KeyFile))
			must(t, err)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("the key has mode %v", info.Mode())
			}
		})
	}
}

func TestRotationTakesOnlyTheOwnCertificate(t *testing.T) {
	c := newCluster(t, "alps")
	id, dir := c.joinIn(t, "host-2")
	request, err := peer.NewRequest("host-3")
	must(t, err)
	foreign, err := c.ca.Sign(request.CSR(), "host-3", nil)
	must(t, err)
	t.Log(want(t, fault.Invalid, id.Rotate(request, foreign)))
	own, _ := c.sign(t, "host-2")
	_, another := c.sign(t, "host-2")
	t.Log(want(t, fault.Invalid, id.Rotate(own, another)))
	strangers := newCluster(t, "alps")
	request, certificate := strangers.sign(t, "host-2")
	t.Log(want(t, fault.Denied, id.Rotate(request, certificate)))
	if _, err := peer.Load(dir); err != nil {
		t.Error(err)
	}
}
