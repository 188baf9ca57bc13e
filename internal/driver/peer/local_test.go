package peer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
)

// The people of these tests. None of them has to be in the system's list of users.
const (
	alice, bob  = 47001, 47002
	staff       = 47900 // the group that may
	secondGroup = 47901
)

// serveLocal runs a server until the end of the test.
func serveLocal(t *testing.T, s *peer.LocalServer) *peer.LocalServer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test calls as several users: run it as root")
	}
	dir, err := os.MkdirTemp("/tmp", "godwit-local-") //nolint:usetesting // others must pass through, and the path be short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	s.Path = filepath.Join(dir, "agent.sock")
	for field, standby := range map[*int]int{&s.Connections: 100, &s.ConnectionsPerUser: 50, &s.HeaderBytes: 8 << 10} {
		if *field == 0 {
			*field = standby
		}
	}
	for field, standby := range map[*time.Duration]time.Duration{&s.HeaderTimeout: 20 * time.Second, &s.IdleTimeout: 20 * time.Second} {
		if *field == 0 {
			*field = standby
		}
	}
	s.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := peer.LocalCallerOf(r.Context())
		_, _ = fmt.Fprintf(w, "%s pid %v", who.Name, int(who.PID) == os.Getpid())
	})
	s.Refuse = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, fault.KindOf(err).String()+": "+err.Error(), http.StatusForbidden)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-ended) })
	for { // the socket has its last mode when it can be called
		if info, err := os.Stat(s.Path); err == nil && (s.Group < 0 || info.Mode().Perm() == 0o660) {
			if conn, err := net.Dial("unix", s.Path); err == nil {
				_ = conn.Close()
				return s
			}
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

// dialAs connects as a user with one primary and one supplementary group. Only this thread changes its credentials, which the
// kernel keeps for each thread (setresuid(2)).
func dialAs(t *testing.T, path string, uid, gid int, groups ...uint32) (net.Conn, error) {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done <- result{err: err}
			return
		}
		file := os.NewFile(uintptr(fd), path)
		defer file.Close()
		if err = become(uid, gid, groups); err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		if err != nil {
			done <- result{err: err}
			return
		}
		conn, err := net.FileConn(file)
		done <- result{conn, err}
	}()
	r := <-done
	if r.conn != nil {
		t.Cleanup(func() { _ = r.conn.Close() })
	}
	return r.conn, r.err
}

func call(t *testing.T, s *peer.LocalServer, uid, gid int, groups ...uint32) string {
	t.Helper()
	conn, err := dialAs(t, s.Path, uid, gid, groups...)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return ask(t, conn)
}

// ask makes a call on an open connection and returns the answer's body.
func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: agent\r\n\r\n"); err != nil {
		return "write: " + err.Error()
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "read: " + err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return strings.TrimSpace(string(body))
}

func TestWhoMayUseTheSocket(t *testing.T) {
	closed := serveLocal(t, &peer.LocalServer{Group: -1})
	if got := call(t, closed, 0, 0); got != "root pid true" {
		t.Errorf("root got %q", got)
	}
	if got := call(t, closed, alice, alice, staff); got != "permission denied" {
		t.Errorf("alice got %q at a socket of mode 0600", got)
	}
	// Even if somebody opens the file, the server asks who is there.
	must(t, os.Chmod(closed.Path, 0o666))
	want := "denied: user uid 47001 may not use Godwit on this host: be root, or let a group in with socket-group in the configuration"
	if got := call(t, closed, alice, alice, staff); got != want {
		t.Errorf("alice got %q", got)
	}

	opened := serveLocal(t, &peer.LocalServer{Group: staff})
	info, err := os.Stat(opened.Path)
	must(t, err)
	if sys, ok := info.Sys().(*syscall.Stat_t); !ok || info.Mode().Perm() != 0o660 || sys.Gid != staff {
		t.Errorf("mode %v, %+v", info.Mode(), sys)
	}
	for what, got := range map[string]string{
		"primary group":       call(t, opened, alice, staff),
		"supplementary group": call(t, opened, alice, alice, secondGroup, staff),
	} {
		if got != "uid 47001 pid true" {
			t.Errorf("alice by her %s got %q", what, got)
		}
	}
	must(t, os.Chmod(opened.Path, 0o666))
	if got := call(t, opened, bob, bob, secondGroup); got != "denied: user uid 47002 may not use Godwit on this host: be root or in group 47900" {
		t.Errorf("bob got %q", got)
	}
}

// Users fill their places and the socket's; root is answered all the same, and a place that is given back is given on.
func TestConnectionsAreBounded(t *testing.T) {
	s := serveLocal(t, &peer.LocalServer{Group: staff, Connections: 5, ConnectionsPerUser: 3})
	hold := func(uid int) net.Conn {
		conn, err := dialAs(t, s.Path, uid, staff)
		must(t, err)
		if got := ask(t, conn); got != fmt.Sprintf("uid %d pid true", uid) {
			t.Fatalf("%d got %q", uid, got)
		}
		return conn
	}
	first := hold(alice)
	hold(alice)
	hold(alice)
	if got := call(t, s, alice, staff); !strings.HasPrefix(got, "no resources: user uid 47001 has 3 connections to the agent, the most that one user may have") {
		t.Errorf("alice's fourth got %q", got)
	}
	hold(bob)
	hold(bob)
	if got := call(t, s, bob, staff); !strings.HasPrefix(got, "no resources: the agent has 5 connections, the most that there may be") {
		t.Errorf("the sixth got %q", got)
	}
	if got := call(t, s, 0, 0); got != "root pid true" {
		t.Errorf("root got %q", got)
	}
	must(t, first.Close())
	for end := time.Now().Add(20 * time.Second); ; { // the server sees the end of the connection when it reads it
		got := call(t, s, bob, staff)
		if got == "uid 47002 pid true" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the place was not given back: %q", got)
		}
		runtime.Gosched()
	}
}

// Whoever is refused and stays is cut, and only so many are told why.
func TestRefusedConnectionsAreBoundedToo(t *testing.T) {
	s := serveLocal(t, &peer.LocalServer{Group: staff, Connections: 10, ConnectionsPerUser: 1})
	conn, err := dialAs(t, s.Path, alice, staff)
	must(t, err)
	if got := ask(t, conn); !strings.HasPrefix(got, "uid") {
		t.Fatal(got)
	}
	var waiting []net.Conn
	for range 64 {
		c, err := dialAs(t, s.Path, alice, staff)
		must(t, err)
		waiting = append(waiting, c)
	}
	if got := call(t, s, alice, staff); strings.HasPrefix(got, "no resources") || strings.HasPrefix(got, "uid") {
		t.Errorf("the 65th to be refused got %q", got)
	}
	for _, c := range waiting { // they said nothing and are closed by the server
		must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	if got := call(t, s, alice, staff); !strings.HasPrefix(got, "no resources") {
		t.Errorf("afterwards one got %q", got)
	}
}

func TestSlowAndLongHeadersAreCut(t *testing.T) {
	s := serveLocal(t, &peer.LocalServer{Group: -1, HeaderTimeout: 200 * time.Millisecond, IdleTimeout: 200 * time.Millisecond, HeaderBytes: 4 << 10})
	for what, begin := range map[string]string{
		"nothing":               "",
		"half a header":         "GET / HTTP/1.1\r\nHost: agent\r\nX: ",
		"half an HTTP/2 hello":  "PRI * HTTP/2.0\r\n",
		"an HTTP/2 hello alone": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"an idle HTTP/2":        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", s.Path)
			must(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, begin)
			must(t, err)
			must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it was not cut")
			}
		})
	}
	conn, err := net.Dial("unix", s.Path)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: agent\r\nX: "+strings.Repeat("x", 32<<10)) // it may be cut in the middle
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 32 KiB is answered %s", resp.Status)
	}
}
