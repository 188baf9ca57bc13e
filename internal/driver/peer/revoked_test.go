package peer_test

import (
	"encoding/pem"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func TestARemovedHostIsToldSo(t *testing.T) {
	c := newCluster(t, "alps")
	second, third := c.join(t, "host-2"), c.join(t, "host-3")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: requireHost(hello)})
	dialer := peer.NewDialer(second)
	defer dialer.Close()
	client := dialer.HTTPClient("host-1", address)
	code, _, err := get(t, client, "https://"+address+"/x")
	must(t, err)
	must(t, second.Removed(t.Context(), address))
	if code != http.StatusOK {
		t.Fatalf("got %d before", code)
	}
	list, err := c.ca.Revoke(nil)
	must(t, err)
	gone := second.Certificate()
	if list, err = c.ca.Revoke(list, gone, inventory.HostCertificate{Serial: "0a", Expires: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	must(t, c.first.SaveRevoked(list))

	// The connection that was open before is over too, and so is every new one; others go on.
	code, body, err := get(t, client, "https://"+address+"/x")
	must(t, err)
	if code != http.StatusForbidden || !strings.Contains(body, "removed") {
		t.Errorf("got %d %q", code, body)
	}
	if text := want(t, fault.Denied, second.Removed(t.Context(), address)); !strings.Contains(text, "host host-2 was removed from cluster alps") {
		t.Error(text)
	}
	_, err = dialer.DialStream(t.Context(), "host-1", address, []byte("x"))
	if err == nil {
		t.Error("a removed host has a stream")
	}
	others := peer.NewDialer(third)
	defer others.Close()
	if code, _, err := get(t, others.HTTPClient("host-1", address), "https://"+address+"/x"); err != nil || code != http.StatusOK {
		t.Errorf("another host got %d, %v", code, err)
	}
	must(t, third.Removed(t.Context(), address))
	must(t, third.Removed(t.Context(), "127.0.0.1:1")) // nobody there says nothing

	// An older list does not come back, and none of another cluster.
	old, err := c.ca.Revoke(nil)
	must(t, err)
	must(t, c.first.SaveRevoked(old))
	want(t, fault.Denied, second.Removed(t.Context(), address))
	foreign, err := newCluster(t, "alps").ca.Revoke(list)
	must(t, err)
	want(t, fault.Denied, c.first.SaveRevoked(foreign))
}

// The store was restored from a backup: what it says is older than what a host has seen.
func TestAnOlderListOfTheStoreIsMerged(t *testing.T) {
	c := newCluster(t, "alps")
	second, third, fourth := c.join(t, "host-2"), c.join(t, "host-3"), c.join(t, "host-4")
	restored, err := c.ca.Revoke(nil, third.Certificate())
	must(t, err)
	if merged, err := c.ca.Merge(restored, c.first.Revoked()); merged != nil || err != nil {
		t.Fatalf("merged what is as old: %x, %v", merged, err)
	}
	own, err := c.ca.Revoke(nil)
	must(t, err)
	if merged, err := c.ca.Merge(nil, own); merged != nil || err != nil {
		t.Fatalf("the first, empty list was merged: %x, %v", merged, err)
	}
	if own, err = c.ca.Revoke(own, second.Certificate()); err != nil {
		t.Fatal(err)
	}
	must(t, c.first.SaveRevoked(own))
	merged, err := c.ca.Merge(restored, c.first.Revoked())
	must(t, err)
	must(t, c.first.SaveRevoked(merged)) // it is newer, or nothing changes here
	if again, err := c.ca.Merge(merged, c.first.Revoked()); again != nil || err != nil {
		t.Errorf("merged twice: %x, %v", again, err)
	}
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: requireHost(hello)})
	want(t, fault.Denied, second.Removed(t.Context(), address))
	want(t, fault.Denied, third.Removed(t.Context(), address))
	must(t, fourth.Removed(t.Context(), address))
}

func TestTheKeyOfTheCAIsSealed(t *testing.T) {
	dir := t.TempDir()
	id, err := peer.Init(dir, "alps", "host-1", []string{"127.0.0.1"})
	must(t, err)
	ca, err := peer.LoadCA(dir)
	must(t, err)
	secret, err := peer.LoadSecret(dir)
	must(t, err)
	box, err := ca.Seal(secret)
	must(t, err)
	opened, err := id.UnsealCA(secret, box)
	must(t, err)
	request, err := peer.NewRequest("host-2")
	must(t, err)
	certificate, err := opened.Sign(request.CSR(), "host-2", []string{"127.0.0.1"})
	must(t, err)
	second, err := request.Save(filepath.Join(t.TempDir(), "pki"), opened.Certificate(), certificate)
	must(t, err)
	if second.Host() != "host-2" {
		t.Errorf("it signed for %s", second.Host())
	}
	want(t, fault.Denied, errOf(id.UnsealCA(peer.NewSecret(), box)))
	want(t, fault.Denied, errOf(newCluster(t, "alps").first.UnsealCA(secret, box))) // of another CA with the same secret
	want(t, fault.Invalid, errOf(id.UnsealCA(secret[1:], box)))
	want(t, fault.NotFound, errOf(peer.LoadSecret(t.TempDir())))
}

// The machine is lost on which the cluster was made: another one is its first host, out of what a backup kept.
func TestAFirstHostOutOfWhatWasKept(t *testing.T) {
	dir, next := t.TempDir(), filepath.Join(t.TempDir(), "pki")
	_, err := peer.Init(dir, "alps", "host-1", []string{"127.0.0.1"})
	must(t, err)
	ca, err := peer.LoadCA(dir)
	must(t, err)
	secret, err := peer.LoadSecret(dir)
	must(t, err)
	sealed, err := ca.Seal(secret)
	must(t, err)
	key, err := ca.Key()
	must(t, err)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate()})
	id, err := peer.Found(next, peer.Kept{CA: certificate, CAKey: key, Secret: secret}, "host-9", []string{"127.0.0.1"})
	must(t, err)
	again, err := peer.LoadSecret(next)
	must(t, err)
	must(t, errOf(id.UnsealCA(again, sealed)))
	must(t, errOf(peer.LoadCA(next)))
	if id.Revoked() == nil {
		t.Error("it has no list of revoked certificates to begin with")
	}
	want(t, fault.Exists, errOf(peer.Found(next, peer.Kept{CA: certificate, CAKey: key}, "host-9", nil)))
}
