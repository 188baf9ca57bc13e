package peer_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
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
	return err.Error()
}

// cluster is a CA with its first host; join adds others by the ordinary way.
type cluster struct {
	ca    *peer.CA
	first *peer.Identity
}

func newCluster(t *testing.T, name string) *cluster {
	t.Helper()
	dir := t.TempDir()
	first, err := peer.Init(dir, name, "host-1", []string{"127.0.0.1"})
	must(t, err)
	ca, err := peer.LoadCA(dir)
	must(t, err)
	return &cluster{ca, first}
}

func (c *cluster) join(t *testing.T, host inventory.HostID) *peer.Identity {
	t.Helper()
	request, err := peer.NewRequest(host)
	must(t, err)
	certificate, err := c.ca.Sign(request.CSR(), host, []string{"127.0.0.1"})
	must(t, err)
	id, err := request.Save(t.TempDir(), c.ca.Certificate(), certificate)
	must(t, err)
	return id
}

func TestIdentityIsFoundAgainOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	made, err := peer.Init(dir, "alps", "host-1", []string{"127.0.0.11", "::1"})
	must(t, err)
	loaded, err := peer.Load(dir)
	must(t, err)
	if loaded.Host() != "host-1" || loaded.Cluster() != "alps" || !bytes.Equal(made.CA(), loaded.CA()) || !loaded.Expires().Equal(made.Expires()) {
		t.Errorf("made %v of %v, loaded %v of %v", made.Host(), made.Cluster(), loaded.Host(), loaded.Cluster())
	}
	for name, mode := range map[string]fs.FileMode{
		peer.CAKeyFile: 0o600, peer.KeyFile: 0o600, peer.CACertificateFile: 0o644, peer.CertificateFile: 0o644, ".": 0o700,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	t.Log(want(t, fault.Exists, errOf(peer.Init(dir, "alps", "host-1", nil))))
	again, err := peer.Load(dir)
	must(t, err)
	if !again.Expires().Equal(made.Expires()) {
		t.Error("a refused init changed the identity")
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestHostWithoutAClusterIsToldWhatToDo(t *testing.T) {
	t.Log(want(t, fault.NotFound, errOf(peer.Load(t.TempDir()))))
	dir := t.TempDir()
	_, err := peer.Init(dir, "alps", "host-1", nil)
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, peer.CAKeyFile)))
	t.Log(want(t, fault.NotFound, errOf(peer.LoadCA(dir))))
	must(t, os.WriteFile(filepath.Join(dir, peer.KeyFile), []byte("rubbish"), 0o600))
	t.Log(want(t, fault.Internal, errOf(peer.Load(dir))))
	_, err = peer.Init(t.TempDir(), "Not A Name", "host-1", nil)
	t.Log(want(t, fault.Invalid, err))
	_, err = peer.Init(t.TempDir(), "alps", "host-1", []string{"0.0.0.0"})
	t.Log(want(t, fault.Invalid, err))
}

func TestFilesFitEtcd(t *testing.T) {
	dir := t.TempDir()
	_, err := peer.Init(dir, "alps", "host-1", []string{"127.0.0.11"})
	must(t, err)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, peer.CertificateFile), filepath.Join(dir, peer.KeyFile))
	must(t, err)
	b, err := os.ReadFile(filepath.Join(dir, peer.CACertificateFile))
	must(t, err)
	block, _ := pem.Decode(b)
	ca, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for _, name := range []string{"127.0.0.11", "host-1"} {
			_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}})
			must(t, err)
		}
	}
	if u := pair.Leaf.URIs; len(u) != 1 || u[0].String() != "godwit://alps/host/host-1" || pair.Leaf.Subject.CommonName != "host-1" {
		t.Errorf("got %v, %v", u, pair.Leaf.Subject)
	}
}

func TestSigningTakesTheCallersWordOnly(t *testing.T) {
	c := newCluster(t, "alps")
	request, err := peer.NewRequest("host-1") // asks for another host's name
	must(t, err)
	certificate, err := c.ca.Sign(request.CSR(), "host-2", nil)
	must(t, err)
	leaf, err := x509.ParseCertificate(certificate)
	must(t, err)
	if leaf.Subject.CommonName != "host-2" || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "host-2" {
		t.Errorf("got %v %v", leaf.Subject, leaf.DNSNames)
	}
	t.Log(want(t, fault.Invalid, errOf(request.Save(t.TempDir(), c.ca.Certificate(), certificate))))
	other := newCluster(t, "alps")
	certificate, err = other.ca.Sign(request.CSR(), "host-1", nil)
	must(t, err)
	t.Log(want(t, fault.Denied, errOf(request.Save(t.TempDir(), c.ca.Certificate(), certificate))))
	broken := bytes.Clone(request.CSR())
	broken[len(broken)-1] ^= 1
	t.Log(want(t, fault.Invalid, errOf(c.ca.Sign(broken, "host-1", nil))))
	t.Log(want(t, fault.Invalid, errOf(c.ca.Sign([]byte("rubbish"), "host-1", nil))))
}

func TestTokenComesBackFromItsText(t *testing.T) {
	c := newCluster(t, "alps")
	token, err := c.first.NewToken("127.0.0.11:7443")
	must(t, err)
	got, err := peer.ParseToken("  " + token.Text() + "\n")
	must(t, err)
	if got != token || !bytes.Equal(got.SecretHash(), token.SecretHash()) {
		t.Errorf("sent %v, got %v", token, got)
	}
	must(t, got.Verify(c.first.CA()))
	t.Log(want(t, fault.Denied, got.Verify(newCluster(t, "alps").first.CA())))
	t.Log(len(token.Text()), "characters")
}

func TestBrokenTokensAreRefusedWithoutRepeatingThem(t *testing.T) {
	c := newCluster(t, "alps")
	token, err := c.first.NewToken("127.0.0.11:7443")
	must(t, err)
	good := token.Text()
	for i := range good {
		for _, bad := range []string{good[:i], good[:i] + good[i+1:], good[:i] + swap(good[i]) + good[i+1:]} {
			_, err := peer.ParseToken(bad)
			if text := want(t, fault.Invalid, err); len(bad) > 20 && strings.Contains(text, bad[10:20]) {
				t.Fatalf("%q tells the token", text)
			}
		}
	}
	for _, address := range []string{"", "host", "host:", "host:port", ":7443", "a b:1"} {
		want(t, fault.Invalid, errOf(c.first.NewToken(address)))
	}
}

func swap(b byte) string {
	if b == 'A' {
		return "B"
	}
	return "A"
}

func FuzzParseToken(f *testing.F) {
	f.Add("gw1.")
	f.Add("gw1.AAAA")
	f.Add("")
	f.Add(peer.Token{Address: "h:1", ID: "0011223344556677"}.Text())
	f.Fuzz(func(t *testing.T, text string) {
		token, err := peer.ParseToken(text)
		if err != nil {
			want(t, fault.Invalid, err)
			return
		}
		if token.Text() != strings.TrimSpace(text) {
			t.Errorf("%q reads as %q", text, token.Text())
		}
	})
}
