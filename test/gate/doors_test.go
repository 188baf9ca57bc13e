package gate

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/test/lab"
)

// tcpListen is the state of a listening socket in /proc/net/tcp (include/net/tcp_states.h).
const tcpListen = 10

// doors lists the network sockets that the processes of the cluster listen on, as host:port, and with what else they are bound to.
func doors(t *testing.T, pids []int) []string {
	t.Helper()
	owned := map[uint64]bool{}
	inode := regexp.MustCompile(`^socket:\[(\d+)\]$`)
	for _, pid := range pids {
		links, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fd", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			to, err := os.Readlink(link)
			if err != nil {
				continue // closed meanwhile
			}
			if m := inode.FindStringSubmatch(to); m != nil {
				n, err := strconv.ParseUint(m[1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				owned[n] = true
			}
		}
	}
	if len(owned) == 0 {
		t.Fatal("the cluster's processes have no sockets: this test looks in the wrong place")
	}
	// As one of them sees the network: another test may have left this process' main thread in a namespace of its own.
	fs, err := procfs.NewFS(filepath.Join("/proc", strconv.Itoa(pids[0])))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	at := func(ip net.IP, port uint64) string {
		a, _ := netip.AddrFromSlice(ip)
		return netip.AddrPortFrom(a.Unmap(), uint16(port)).String()
	}
	for _, read := range []func() (procfs.NetTCP, error){fs.NetTCP, fs.NetTCP6} { //nolint:staticcheck // its advice is netlink, for hosts with very many sockets
		lines, err := read()
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			t.Fatal(err)
		}
		for _, l := range lines {
			if l.St == tcpListen && owned[l.Inode] {
				found = append(found, at(l.LocalAddr, l.LocalPort))
			}
		}
	}
	for _, read := range []func() (procfs.NetUDP, error){fs.NetUDP, fs.NetUDP6} {
		lines, err := read()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, l := range lines {
			if owned[l.Inode] {
				found = append(found, "udp "+at(l.LocalAddr, l.LocalPort))
			}
		}
	}
	slices.Sort(found)
	return found
}

// speak sends words over a connection and returns what comes back until the other side closes it.
func speak(t *testing.T, conn net.Conn, words string) string {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, words) // the other side may have closed it
	var got bytes.Buffer
	_, err := io.Copy(&got, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v: the connection is still open after half a minute", conn.RemoteAddr())
	}
	return got.String()
}

const plainCall = "POST /godwit.v1.VMService/ListVMs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

// isRefusal reports whether an answer in plain text says nothing but that TLS is wanted: a TLS alert (RFC 8446, 6), or the one
// sentence of Go's HTTP server.
func isRefusal(text string) bool {
	return text == "" || text[0] == 0x15 || text == "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
}

// nothingAnswersStrangers finds every socket that the host's processes listen on, QEMU's among them, and speaks to it as somebody
// who does not belong to the cluster.
func nothingAnswersStrangers(t *testing.T, c *lab.Cluster) {
	h := c.Hosts[0]
	found := doors(t, c.Processes())
	var want []string
	for _, port := range []string{"2379", "2380", "7443", "7444"} {
		want = append(want, net.JoinHostPort(h.Address, port))
	}
	if !slices.Equal(found, want) {
		t.Fatalf("the host listens on %v, not on %v: a new door needs a lock, a line in docs/architecture.md and one here", found, want)
	}
	// A cluster of the same name with a host of the same name, and another CA.
	foreign := t.TempDir()
	if _, err := peer.Init(foreign, "godwit", "host-1", []string{h.Address}); err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(foreign, peer.CertificateFile), filepath.Join(foreign, peer.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range found {
		agent := strings.HasSuffix(address, ":7443")
		for _, words := range []string{plainCall, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x00\x00\x00\x02{}"} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if got := speak(t, conn, words); !isRefusal(got) {
				t.Errorf("%s answers plain %.10q: %.200q", address, words, got)
			}
			_ = conn.Close()
		}
		for who, certificates := range map[string][]tls.Certificate{"no certificate": nil, "a foreign certificate": {certificate}} {
			for _, alpn := range []string{"", "h2", "http/1.1", "godwit-stream/1", "godwit-trunk/1"} {
				got, version := speakTLS(t, address, alpn, certificates)
				switch {
				case agent && alpn == "h2": // whoever joins has no certificate yet; what it may call is below
				case got != "":
					t.Errorf("%s answers %s by TLS with ALPN %q: %.200q", address, who, alpn, got)
				}
				if version != 0 && version < tls.VersionTLS12 {
					t.Errorf("%s speaks TLS %x", address, version)
				}
			}
		}
	}
	onlyJoinAnswers(t, net.JoinHostPort(h.Address, "7443"))
	// Who shows a certificate of another CA does not even get that far.
	client := strangersClient(t, []tls.Certificate{certificate})
	for _, path := range calls() {
		if code, body := post(t, client, "https://"+net.JoinHostPort(h.Address, "7443")+path); code != 0 {
			t.Errorf("a foreign certificate: %s is answered %d %s", path, code, body)
		}
	}
}

// post makes a call as JSON; 0 and the error for one that nobody answers.
func post(t *testing.T, client *http.Client, url string) (code int, body string) {
	t.Helper()
	resp, err := client.Post(url, "application/json", strings.NewReader(`{"token":"gw1.none","host":"x"}`))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// speakTLS returns what a listener says by TLS, if it comes to that.
func speakTLS(t *testing.T, address, alpn string, certificates []tls.Certificate) (got string, version uint16) {
	t.Helper()
	conf := &tls.Config{InsecureSkipVerify: true, Certificates: certificates, MinVersion: tls.VersionTLS10} // whatever they let a stranger do
	if alpn != "" {
		conf.NextProtos = []string{alpn}
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	conn, err := tls.DialWithDialer(dialer, "tcp", address, conf)
	if err != nil {
		return "", 0
	}
	defer conn.Close()
	words := plainCall
	if alpn == "h2" {
		words = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, words)
		b := make([]byte, 64)
		n, _ := conn.Read(b)
		return string(b[:n]), conn.ConnectionState().Version
	}
	return speak(t, conn, words), conn.ConnectionState().Version
}

// onlyJoinAnswers makes every call of the API at the agent's port as somebody without a certificate.
func onlyJoinAnswers(t *testing.T, address string) {
	t.Helper()
	client := strangersClient(t, nil)
	joins := 0
	for _, path := range calls() {
		code, body := post(t, client, "https://"+address+path)
		switch {
		case strings.HasPrefix(path, "/godwit.v1.JoinService/"):
			joins++
			if code == 0 || code == http.StatusOK || strings.Contains(body, "who calls?") {
				t.Errorf("%s with a token that is none is answered %d %s", path, code, body)
			}
		case code != http.StatusForbidden || !strings.Contains(body, "who calls?") && !strings.Contains(body, "is spoken between hosts only"):
			t.Errorf("%s is answered %d %s", path, code, body)
		}
	}
	if joins == 0 {
		t.Error("no call to join was tried")
	}
	for _, path := range []string{"/", "/debug/pprof/", "/metrics", "/godwit.v1.JoinServiceX/Join"} {
		if code, body := post(t, client, "https://"+address+path); code != http.StatusForbidden || !strings.Contains(body, "there is no call") {
			t.Errorf("%s is answered %d %.100s", path, code, body)
		}
	}
}
