package peer

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The bounds of connections to the local socket that are turned down.
const (
	// refusalsMax is how many of them are told why at once; others are closed without a word.
	refusalsMax = 64
	// refusalTime is how long such a connection may last.
	refusalTime = 2 * time.Second
)

// groupsMax is how many supplementary groups a process may have (NGROUPS_MAX in linux/limits.h).
const groupsMax = 65536

// LocalCaller is the process at the other end of a connection to the local socket, as the kernel says (unix(7), SO_PEERCRED):
// as it was when it connected.
type LocalCaller struct {
	UID  uint32
	GID  uint32
	PID  int32
	Name string // the user's name, or "uid 1234" when that has none
}

type localKey struct{}

// LocalCallerOf returns the process that makes the call of this context; false if it did not come over the local socket.
func LocalCallerOf(ctx context.Context) (LocalCaller, bool) {
	conn, ok := ctx.Value(localKey{}).(*localConn)
	if !ok {
		return LocalCaller{}, false
	}
	return conn.caller, true
}

// LocalServer answers users of this machine on a unix socket. It lets in root, the user that it runs as itself, and the members
// of one group, and bounds how many connections there are.
type LocalServer struct {
	// Path of the socket. One that is there is of a process that was killed, and replaced.
	Path string
	// Group is the id of the group whose members may call; negative: none. The socket has mode 0660 with it, else 0600.
	Group int
	// HTTP answers calls of those who were let in.
	HTTP http.Handler
	// Refuse answers calls of those who were not: err is fault.Denied or fault.NoResources.
	Refuse func(w http.ResponseWriter, r *http.Request, err error)
	// Connections and ConnectionsPerUser bound what is open at once. Root is not among the former, so that users cannot keep it out.
	Connections, ConnectionsPerUser int
	// HeaderBytes, HeaderTimeout and IdleTimeout bound a connection that does not do its part.
	HeaderBytes                int
	HeaderTimeout, IdleTimeout time.Duration
	// Listening is called once when connections are accepted; nil: nobody wants to know.
	Listening func()
}

// callsEndMax bounds how long calls may go on when the server ends. One that takes longer most likely waits for something that
// has gone already, and nobody may wait for that.
const callsEndMax = 300 * time.Millisecond

// Run answers until ctx ends or the socket breaks; nil for an end that ctx asked for. Calls that do not end within callsEndMax
// then are cut.
func (s *LocalServer) Run(ctx context.Context) error {
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	if s.Listening != nil {
		s.Listening()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // curl
	protocols.SetUnencryptedHTTP2(true)
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	server := &http.Server{
		Handler: http.HandlerFunc(s.answer), Protocols: protocols,
		ReadHeaderTimeout: s.HeaderTimeout, IdleTimeout: s.IdleTimeout, MaxHeaderBytes: s.HeaderBytes,
		BaseContext: func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, localKey{}, c) },
	}
	stop := context.AfterFunc(ctx, func() {
		within, done := context.WithTimeout(base, callsEndMax)
		defer done()
		_ = server.Shutdown(within) // what does not end in time is cut below
		cut()
		_ = server.Close()
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		cut()
		return err
	}
	<-base.Done()
	return nil
}

// listen makes the socket. Between its making and its final mode only its owner can connect (umask, and mode 0600 first).
func (s *LocalServer) listen(ctx context.Context) (net.Listener, error) {
	if err := os.Remove(s.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.Internal, "socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", s.Path)
	if err != nil {
		return nil, fault.New(fault.Internal, "socket: %w", err)
	}
	err = os.Chmod(s.Path, 0o600)
	if err == nil && s.Group >= 0 {
		if err = os.Chown(s.Path, -1, s.Group); err == nil {
			err = os.Chmod(s.Path, 0o660)
		}
	}
	if err != nil {
		_ = l.Close() // err says what matters
		return nil, fault.New(fault.Internal, "socket: %w: may this user give it to group %d?", err, s.Group)
	}
	return &localListener{Listener: l, server: s, users: map[uint32]int{}}, nil
}

func (s *LocalServer) answer(w http.ResponseWriter, r *http.Request) {
	conn, ok := r.Context().Value(localKey{}).(*localConn)
	if !ok {
		http.Error(w, "this call has no connection", http.StatusInternalServerError) // net/http promises one
		return
	}
	if conn.refused != nil {
		w.Header().Set("Connection", "close")
		s.Refuse(w, r, conn.refused)
		return
	}
	s.HTTP.ServeHTTP(w, r)
}

// localListener lets connections in by who is at their other end.
type localListener struct {
	net.Listener

	server *LocalServer

	mu       sync.Mutex
	users    map[uint32]int // open connections by user
	all      int            // of all users but root
	refusals int
}

// Accept returns the next connection, also one that is to be refused.
func (l *localListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if conn := l.admit(raw); conn != nil {
			return conn, nil
		}
	}
}

// admit returns the connection, counted; nil when it was closed.
func (l *localListener) admit(raw net.Conn) *localConn {
	conn := &localConn{Conn: raw}
	caller, groups, err := whoCalls(raw)
	if err != nil {
		_ = raw.Close() // it has gone already
		return nil
	}
	conn.caller = caller
	if !l.server.mayCall(caller, groups) {
		conn.refused = fault.New(fault.Denied, "user %s may not use Godwit on this host: %s", caller.Name, l.server.whoMay())
	}
	whole := make(chan struct{})
	defer close(whole)
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn.refused == nil {
		conn.refused = l.full(caller)
	}
	if conn.refused != nil {
		if l.refusals >= refusalsMax {
			_ = raw.Close() // nothing was read from it
			return nil
		}
		l.refusals++
		conn.timer = time.AfterFunc(refusalTime, func() {
			<-whole
			_ = conn.Close() // whether or not it is read
		})
		conn.leave = func() { l.refusals-- }
	} else {
		l.users[caller.UID]++
		if caller.UID != 0 {
			l.all++
		}
		conn.leave = func() {
			if l.users[caller.UID]--; l.users[caller.UID] == 0 {
				delete(l.users, caller.UID)
			}
			if caller.UID != 0 {
				l.all--
			}
		}
	}
	leave := conn.leave
	conn.leave = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		leave()
	}
	return conn
}

// full returns why one more connection of the caller is too many, nil if it is not.
func (l *localListener) full(caller LocalCaller) error {
	if most := l.server.ConnectionsPerUser; l.users[caller.UID] >= most {
		return fault.New(fault.NoResources, "user %s has %d connections to the agent, the most that one user may have (limits.connections-per-user): end some and try again", caller.Name, most)
	}
	if most := l.server.Connections; caller.UID != 0 && l.all >= most {
		return fault.New(fault.NoResources, "the agent has %d connections, the most that there may be (limits.connections): try again later", most)
	}
	return nil
}

// mayCall decides who is an administrator of this host.
func (s *LocalServer) mayCall(caller LocalCaller, groups []uint32) bool {
	if caller.UID == 0 || int(caller.UID) == os.Geteuid() {
		return true
	}
	return s.Group >= 0 && (int(caller.GID) == s.Group || slices.Contains(groups, uint32(s.Group))) //nolint:gosec // not negative
}

func (s *LocalServer) whoMay() string {
	if s.Group < 0 {
		return "be root, or let a group in with socket-group in the configuration"
	}
	name := strconv.Itoa(s.Group)
	if g, err := user.LookupGroupId(name); err == nil {
		name = g.Name
	}
	return "be root or in group " + name
}

// whoCalls asks the kernel for the process that connected, and its supplementary groups.
func whoCalls(conn net.Conn) (LocalCaller, []uint32, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return LocalCaller{}, nil, fault.New(fault.Internal, "%T is no unix socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return LocalCaller{}, nil, err
	}
	var cred *unix.Ucred
	var groups []uint32
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed == nil {
			groups, failed = peerGroups(fd)
		}
	}); err != nil {
		return LocalCaller{}, nil, err
	}
	if failed != nil {
		return LocalCaller{}, nil, failed
	}
	caller := LocalCaller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid, Name: "uid " + strconv.FormatUint(uint64(cred.Uid), 10)}
	if u, err := user.LookupId(strconv.FormatUint(uint64(cred.Uid), 10)); err == nil {
		caller.Name = u.Username
	}
	return caller, groups, nil
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13), for which x/sys has the number but no function.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(4 * len(groups)) //nolint:gosec // bounded below
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // the kernel writes into both
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && len(groups) < groupsMax: // size is what it takes
			groups = make([]uint32, groupsMax)
		default:
			return nil, errno
		}
	}
}

// localConn is a connection whose other end is known.
type localConn struct {
	net.Conn

	caller  LocalCaller
	refused error
	timer   *time.Timer
	leave   func()
	once    sync.Once
}

// Close closes it and gives its place back.
func (c *localConn) Close() error {
	c.once.Do(func() {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.leave()
	})
	return c.Conn.Close()
}
