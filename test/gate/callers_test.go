package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
	"github.com/godwit-vm/godwit/test/lab"
)

// nobody is a user and a group that every Debian has. These tests let the group use the socket.
const (
	nobody      = 65534
	nobodyGroup = "nogroup"
	nogroup     = 65534
	games       = 60 // another group
)

// dialAs connects to a unix socket as another user. Only a thread of its own changes its credentials, which the kernel keeps for
// each thread (setresuid(2)); the thread ends with it.
func dialAs(path string, uid, gid int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done <- result{err: err}
			return
		}
		file := os.NewFile(uintptr(fd), path)
		defer file.Close()
		if err = become(uid, gid); err == nil {
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
	return r.conn, r.err
}

// become gives the calling thread, and no other, a user and a group for good.
func become(uid, gid int) error {
	groups := []uint32{uint32(gid)}
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups[0])), 0},
		{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
		{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	return nil
}

// clientAs returns a client of the host's agent with connections of its own, as a user; uid 0 is the test itself.
func clientAs(t *testing.T, h *lab.Host, uid, gid int) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if uid != 0 {
			return dialAs(h.Socket, uid, gid)
		}
		return new(net.Dialer).DialContext(ctx, "unix", h.Socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func listVMs(ctx context.Context, client *http.Client) error {
	_, err := godwitv1connect.NewVMServiceClient(client, "http://agent").ListVMs(ctx, connect.NewRequest(&godwitv1.ListVMsRequest{}))
	return wire.FromFault(err)
}

// whoMayCall is the story of the socket: root and the group's members are answered, everybody else is told why not.
func whoMayCall(t *testing.T, h *lab.Host) {
	if err := listVMs(step(t), clientAs(t, h, nobody, nogroup)); err != nil {
		t.Errorf("a member of %s: %v", nobodyGroup, err)
	}
	_, err := dialAs(h.Socket, nobody, games)
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("somebody else connects: %v", err)
	}
	if err := os.Chmod(h.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	err = listVMs(step(t), clientAs(t, h, nobody, games))
	want := "user nobody may not use Godwit on this host: be root or in group nogroup"
	if !fault.Is(err, fault.Denied) || err.Error() != want {
		t.Errorf("somebody else at an open socket: %v (%v)", err, fault.KindOf(err))
	}
	if err := os.Chmod(h.Socket, 0o660); err != nil {
		t.Fatal(err)
	}
}

// aFlood is the story of a user whose script has gone wild, with more connections and more calls than anybody may have. It is
// refused with one line each, and root's commands are answered.
func aFlood(t *testing.T, h *lab.Host) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var answered atomic.Int64
	var mu sync.Mutex
	refused := map[string]fault.Kind{}
	var flood sync.WaitGroup
	for range 4 {
		client := clientAs(t, h, nobody, nogroup)
		for range 40 {
			flood.Go(func() {
				for ctx.Err() == nil {
					err := listVMs(ctx, client)
					if err == nil {
						answered.Add(1)
					} else if ctx.Err() == nil {
						mu.Lock()
						refused[err.Error()] = fault.KindOf(err)
						mu.Unlock()
					}
				}
			})
		}
	}
	flood.Go(func() {
		var held []net.Conn
		for ctx.Err() == nil {
			conn, err := dialAs(h.Socket, nobody, nogroup)
			if err != nil {
				break // the kernel's own queue is full
			}
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: agent\r\nX: ") // and never the rest
			if held = append(held, conn); len(held) > 200 {
				break
			}
		}
		<-ctx.Done()
		for _, c := range held {
			_ = c.Close()
		}
	})
	for i := range 10 {
		if _, err := h.Godwit(step(t), "vm", "ls"); err != nil {
			t.Errorf("root's vm ls number %d: %v", i+1, err)
		}
	}
	root := clientAs(t, h, 0, 0)
	for range 20 {
		if err := listVMs(step(t), root); err != nil {
			t.Errorf("root: %v", err)
		}
	}
	const slow = "user nobody makes more than 40 calls per second (limits.calls-per-second): slow down and try again"
	if err := lab.Until(t.Context(), stepMax, func() error { // the burst may outlast root's calls on a busy machine
		mu.Lock()
		defer mu.Unlock()
		if refused[slow] != fault.Unavailable {
			return fmt.Errorf("after %d answers it was never told to slow down", answered.Load())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	stop()
	flood.Wait()
	if answered.Load() == 0 {
		t.Error("the user was not answered even once")
	}
	mu.Lock()
	defer mu.Unlock()
	for text := range refused { // also what its own connections said when they were cut
		if strings.Contains(text, "\n") {
			t.Errorf("not one line: %q", text)
		}
	}
	t.Logf("the flood was answered %d times, and refused: %v", answered.Load(), refused)
}

// oneTooMany is the story of a user at the bound of connections: the next one is told, root is not affected.
func oneTooMany(t *testing.T, h *lab.Host) {
	var open []*http.Client
	for i := 0; ; i++ {
		if i > 64 {
			t.Fatal("64 connections of one user are open and no bound is met")
		}
		client := clientAs(t, h, nobody, nogroup)
		err := listVMs(step(t), client)
		if err == nil {
			open = append(open, client)
			continue
		}
		want := fmt.Sprintf("user nobody has %d connections to the agent, the most that one user may have (limits.connections-per-user): end some and try again", connectionsPerUser)
		if !fault.Is(err, fault.NoResources) || err.Error() != want || i != connectionsPerUser {
			t.Errorf("connection %d: %v (%v)", i+1, err, fault.KindOf(err))
		}
		break
	}
	if _, err := h.Godwit(step(t), "vm", "ls"); err != nil {
		t.Errorf("root: %v", err)
	}
	for _, c := range open {
		c.CloseIdleConnections()
	}
}
