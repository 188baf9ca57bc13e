package gate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
	"github.com/godwit-vm/godwit/test/lab"
)

const badInputClusterFile = "testdata/bad-input-cluster.txt"

// membership is a cluster that nobody gets into by mistake.
type membership struct {
	*lab.Cluster

	file strings.Builder
}

// hosts is what the cluster knows of hosts and tokens: the keys that a join writes.
func (m *membership) hosts(t *testing.T) string {
	t.Helper()
	text, err := m.Hosts[0].Godwit(step(t), "store", "dump", "--data", m.Hosts[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Records []struct {
			Key      string
			Revision int64
		}
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, r := range dump.Records {
		if strings.HasPrefix(r.Key, "/godwit/token/") || strings.HasPrefix(r.Key, "/godwit/host/") && strings.HasSuffix(r.Key, "/epoch") {
			fmt.Fprintln(&all, r.Key, r.Revision)
		}
	}
	return all.String()
}

// try runs a command that must fail with one line and change neither the cluster nor the folder.
func (m *membership) try(t *testing.T, what, folder string, exit int, command ...string) {
	t.Helper()
	t.Run(what, func(t *testing.T) {
		hosts, files := m.hosts(t), listing(t, folder)
		out, errs, err := m.Hosts[0].Command(step(t), command...)
		if code := lab.ExitCode(err); code != exit || len(out) > 0 {
			t.Errorf("exit code %d, not %d, and output %q: %v", code, exit, out, err)
		}
		m.note(t, what, "$ godwit "+strings.Join(quoted(command), " "), fmt.Sprint("exit ", exit), string(errs))
		if now := m.hosts(t); now != hosts {
			t.Errorf("the cluster knew\n%s\nand knows\n%s", hosts, now)
		}
		if now := listing(t, folder); now != files {
			t.Errorf("the folder held\n%s\nand holds\n%s", files, now)
		}
	})
}

// clockRE is a time of the day in an answer.
var clockRE = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d UTC`)

// note writes an answer down, which must be one line.
func (m *membership) note(t *testing.T, what string, lines ...string) {
	t.Helper()
	said := strings.TrimSpace(lines[len(lines)-1])
	if said == "" || strings.Contains(said, "\n") {
		t.Errorf("not one line:\n%s", said)
	}
	tidy := (&mistakes{Cluster: m.Cluster}).tidy
	fmt.Fprintf(&m.file, "\n# %s\n", what)
	for _, l := range append(lines[:len(lines)-1], said) {
		fmt.Fprintln(&m.file, regexp.MustCompile(`:\d{5}\b`).ReplaceAllString(clockRE.ReplaceAllString(tidy(l), "CLOCK"), ":PORT"))
	}
}

// listing lists what is in a folder, with sizes; "none" if it is not there.
func listing(t *testing.T, dir string) string {
	t.Helper()
	if _, err := os.Lstat(dir); err != nil {
		return "none"
	}
	var all strings.Builder
	if err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			fmt.Fprintln(&all, path, info.Size(), info.ModTime())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// The story: hosts that do not belong try to join, and hosts come back as what they are not. Each gets one line; the folder is as it was, the cluster
// lists nobody new, and the token that was not spent is good in the end. The answers are in testdata/bad-input-cluster.txt.
func TestBadInputCluster(t *testing.T) {
	t.Parallel()
	m := &membership{Cluster: startCluster(t, lab.Options{Hosts: 2})}
	m.file.WriteString("# What Godwit answers to hosts that do not belong: $ the command, its exit code, its standard error. Made by -rewrite; read it as prose.\n")
	first, second := m.Hosts[0], m.Hosts[1]
	token := m.token(t)
	parsed, err := peer.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(m.Dir, "new")
	join := func(token, data string) []string {
		return []string{"join", token, "--data", data, "--name", "host-9", "--address", first.Address[:strings.LastIndex(first.Address, ".")] + ".99"}
	}

	wrong := parsed
	wrong.CA[0] ^= 1
	m.try(t, "a token with the hash of another CA", folder, 5, join(wrong.Text(), folder)...)
	stale := m.token(t, "--life", "1ms")
	m.try(t, "a stale token", folder, 5, join(stale, folder)...)
	nobody := parsed
	nobody.Address = "127.0.0.1:9"
	m.try(t, "a token of a host that does not answer", folder, 6, join(nobody.Text(), folder)...)
	name := join(token, folder)
	name[5] = second.Name
	m.try(t, "a second host with the same name", folder, 4, name...)
	m.try(t, "an old data folder", second.Data, 2, join(token, second.Data)...)

	m.clocks(t, parsed, folder)

	full := filepath.Join(m.Dir, "full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("godwit-gate", full, "tmpfs", 0, "size=64k"); err != nil { // the cluster's end unmounts it
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	m.try(t, "a disk that is full", full, 5, join(token, full)...)
	m.try(t, "a disk that is full, and no folder yet", filepath.Join(full, "data"), 5, join(token, filepath.Join(full, "data"))...)

	m.foreign(t, second)
	m.twin(t, second)

	if _, err := first.Godwit(step(t), join(token, folder)...); err != nil {
		t.Errorf("after all that the token is no longer good: %v", err)
	}
	m.try(t, "a token that was used", folder+"-2", 5, join(token, folder+"-2")...)
	compare(t, badInputClusterFile, m.file.String())
}

func (m *membership) token(t *testing.T, flags ...string) string {
	t.Helper()
	out, err := m.Hosts[0].Godwit(step(t), append([]string{"token", "create"}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// clocks tries clocks that are off by an hour: the new host's, as the cluster sees it, and the cluster's, as the new host sees it in certificates
// that are not valid yet or no more.
func (m *membership) clocks(t *testing.T, token peer.Token, folder string) {
	t.Helper()
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		hosts := m.hosts(t)
		request, err := peer.NewRequest("host-9")
		if err != nil {
			t.Fatal(err)
		}
		client := godwitv1connect.NewJoinServiceClient(peer.DialJoin(token), "https://"+token.Address)
		_, err = client.Join(step(t), connect.NewRequest(&godwitv1.JoinRequest{
			Token: token.Text(), Host: "host-9", Csr: request.CSR(), Addresses: []string{"127.0.0.99"}, Now: timestamppb.New(time.Now().Add(off)),
		}))
		if err = wire.FromFault(err); !fault.Is(err, fault.Denied) {
			t.Fatalf("a clock that is off by %v: %v", off, err)
		}
		m.note(t, fmt.Sprintf("a clock that is off by %v", off), err.Error())
		if now := m.hosts(t); now != hosts {
			t.Errorf("the cluster knew\n%s\nand knows\n%s", hosts, now)
		}
	}
	now := time.Now()
	for _, life := range []struct {
		what       string
		begin, end time.Time
	}{
		{"a cluster whose clock is an hour ahead", now.Add(time.Hour), now.Add(48 * time.Hour)},
		{"a cluster whose certificate ended an hour ago", now.Add(-48 * time.Hour), now.Add(-time.Hour)},
	} {
		address, ca := pretend(t, life.begin, life.end)
		other := token
		other.Address, other.CA = address, sha256.Sum256(ca)
		m.try(t, life.what, folder, 5, "join", other.Text(), "--data", folder, "--name", "host-9", "--address", "127.0.0.99")
	}
}

// pretend listens as a cluster whose certificates live from begin to end.
func pretend(t *testing.T, begin, end time.Time) (address string, ca []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pretend"}, NotBefore: begin, NotAfter: end, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{"host-1"},
	}
	if ca, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{ca}, PrivateKey: key}}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(t.Context()) // the other side refuses it
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l.Addr().String(), ca
}

// foreign tries a host with the identity of another cluster: it cannot read the store, does not start, and no host talks to it.
func (m *membership) foreign(t *testing.T, like *lab.Host) {
	t.Helper()
	folder := filepath.Join(m.Dir, "foreign")
	if err := os.CopyFS(folder, os.DirFS(like.Data)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(folder, "pki")); err != nil {
		t.Fatal(err)
	}
	id, err := peer.Init(filepath.Join(folder, "pki"), "godwit", inventory.HostID(like.Name), []string{like.Address})
	if err != nil {
		t.Fatal(err)
	}
	m.try(t, "a foreign certificate at the store", folder, 5, "store", "dump", "--data", folder)
	dialer := peer.NewDialer(id)
	defer dialer.Close()
	_, err = dialer.DialStream(step(t), inventory.HostID(m.Hosts[0].Name), net.JoinHostPort(m.Hosts[0].Address, "7443"), nil)
	if !fault.Is(err, fault.Denied) {
		t.Fatalf("a foreign certificate at an agent: %v", err)
	}
	m.note(t, "a foreign certificate at an agent", err.Error())

	mixed := filepath.Join(m.Dir, "mixed") // the cluster's CA, and a certificate that it did not sign
	if err := os.CopyFS(mixed, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(like.Data, "pki", peer.CACertificateFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(mixed, "pki", peer.CACertificateFile), ca, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.try(t, "a certificate that the cluster's CA did not sign", mixed+"/pki", 5, "run", "--data", mixed, "--run", mixed+"-run")
}

// twin starts a copy of a host's data folder beside it, as a cloned machine would: the host is not disturbed.
func (m *membership) twin(t *testing.T, of *lab.Host) {
	t.Helper()
	folder := filepath.Join(m.Dir, "twin")
	if err := os.CopyFS(folder, os.DirFS(of.Data)); err != nil {
		t.Fatal(err)
	}
	agent, err := of.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	hosts := m.hosts(t)
	cmd := m.Hosts[0].Interactive(step(t), "run", "--data", folder, "--run", filepath.Join(m.Dir, "twin-run"))
	log, err := os.Create(filepath.Join(m.Dir, "twin.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const said = "is another agent on that address"
	if err := lab.Until(t.Context(), stepMax, func() error {
		text, err := os.ReadFile(log.Name())
		if err == nil && !strings.Contains(string(text), said) {
			err = fmt.Errorf("the twin says\n%s", text)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Signal(unix.SIGTERM) // gone already is what is wanted
	_ = cmd.Wait()                       // it says nothing that matters
	if now := m.hosts(t); now != hosts {
		t.Errorf("the cluster knew\n%s\nand knows\n%s", hosts, now)
	}
	if now, err := of.PID(step(t), "agent"); err != nil || now != agent {
		t.Errorf("the agent was replaced: PID %d and %d (%v)", agent, now, err)
	}
}
