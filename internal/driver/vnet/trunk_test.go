package vnet

import (
	"bufio"
	"crypto/tls"
	"strings"
	"testing"
	"time"
)

// Only the cluster's hosts get a trunk, and only under their own name.
func TestTrunkRefusesStrangers(t *testing.T) {
	ca := newAuthority(t)
	b := startNode(t, ca, "host-2", "127.0.0.2:0")
	must(t, b.SetPeers(t.Context(), []Peer{{ID: "host-1", Addr: "127.0.0.1:9"}}))
	dial := func(config *tls.Config, alpn string) error {
		config = config.Clone()
		config.ServerName, config.NextProtos = "host-2", []string{alpn}
		conn, err := tls.Dial("tcp", b.trunk, config)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		_, err = conn.Write(appendMessage(nil, item{kind: kindHello, ctl: &control{number: trunkVersion, host: "host-1"}}))
		if err == nil {
			_, err = readMessage(bufio.NewReaderSize(conn, readBuffer))
		}
		return err
	}
	if err := dial(ca.issue(t, "host-1"), trunkALPN); err != nil {
		t.Fatalf("the peer itself is refused: %v", err)
	}
	if err := dial(ca.issue(t, "host-1"), "h2"); err == nil {
		t.Error("another protocol was let in")
	}
	if err := dial(ca.issue(t, "host-9"), trunkALPN); err == nil {
		t.Error("a host that is no peer was let in")
	}
	anonymous := ca.issue(t, "host-1")
	anonymous.Certificates = nil
	if err := dial(anonymous, trunkALPN); err == nil {
		t.Error("a peer without a certificate was let in")
	}
	foreign := newAuthority(t).issue(t, "host-1")
	foreign.RootCAs = ca.pool
	if err := dial(foreign, trunkALPN); err == nil {
		t.Error("a certificate of another cluster was let in")
	}
}

// A host that finds another one where its peer should be does not talk to it, and says so.
func TestTrunkRefusesTheWrongHost(t *testing.T) {
	ca := newAuthority(t)
	a, b := startNode(t, ca, "host-1", "127.0.0.1:0"), startNode(t, ca, "host-2", "127.0.0.2:0")
	must(t, b.SetPeers(t.Context(), []Peer{{ID: "host-1", Addr: a.trunk}}))
	must(t, a.SetPeers(t.Context(), []Peer{{ID: "host-3", Addr: b.trunk}}))
	eventually(t, "the mistake is named", func() bool {
		peers, err := a.Peers(t.Context())
		must(t, err)
		return strings.Contains(peers[0].Error, "host-3") && !peers[0].Connected
	})
}

// A peer that falls silent without hanging up is noticed within three seconds.
func TestSilentPeerIsGivenUp(t *testing.T) {
	ca := newAuthority(t)
	b := startNode(t, ca, "host-2", "127.0.0.2:0")
	must(t, b.SetPeers(t.Context(), []Peer{{ID: "host-1", Addr: "127.0.0.1:9"}}))
	config := ca.issue(t, "host-1")
	config.ServerName, config.NextProtos = "host-2", []string{trunkALPN}
	conn, err := tls.Dial("tcp", b.trunk, config)
	must(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Write(appendMessage(nil, item{kind: kindHello, ctl: &control{number: trunkVersion, host: "host-1"}}))
	must(t, err)
	b.waitTrunks(1)
	began := time.Now()
	b.waitTrunks(0)
	if took := time.Since(began); took < silenceMax/2 || took > 3*time.Second {
		t.Fatalf("noticed after %v, want about %v", took, silenceMax)
	}
}
