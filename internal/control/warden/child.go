package warden

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// child is one role as the loop knows it.
type child struct {
	Role
	backoff backoff
	startAt time.Time // while it does not run: when it is started (again)

	cmd     *exec.Cmd // nil while it does not run
	began   time.Time
	silence silence
	said    string    // what it said last
	killAt  time.Time // not zero: it is to end, and is killed then
	told    bool      // it got its SIGTERM
}

func (c *child) running() bool { return c.cmd != nil }

func (c *child) pid() int { return c.cmd.Process.Pid }

// signal sends the signal to the role's process and nothing else; a process that is gone already needs none.
func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

// start starts the child's process.
func (w *warden) start(ctx context.Context, c *child, now time.Time, ran time.Duration) {
	var agent *ear
	ours, theirs, err := socketPair()
	if err == nil {
		agent = w.greet(c, ours)
		cmd := exec.Command(w.Binary, c.Args...) //nolint:noctx // it is ended in its turn, not when ctx ends
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.ExtraFiles = []*os.File{theirs}
		cmd.Env = append(environment(), lineVariable+"=3") // the first of ExtraFiles
		// A group of its own: Ctrl-C at a terminal is for this process, which then ends the roles in order. A role does not
		// outlive its warden by a moment: the next warden's roles want its sockets and ports.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err = cmd.Start(); err == nil {
			c.cmd = cmd
		}
		_ = theirs.Close() // the child has its own
	}
	if err != nil {
		if ours != nil {
			_ = ours.Close() // nothing was said
		}
		w.rest(ctx, c, now, fault.Wrap("start", c.Name, err))
		return
	}
	c.began, c.said, c.killAt, c.told = now, "", time.Time{}, false
	c.silence = silence{heard: ran}
	cmd := c.cmd
	w.Log.LogAttrs(ctx, slog.LevelInfo, "child started", slog.String("child", c.Name), slog.Int("pid", c.pid()))
	go listen(ours, func(text string) { // ends with the process, which has the other end
		if agent != nil && forGuard(text) {
			w.guard.send(word{from: agent, text: text})
			return
		}
		w.send(func(ctx context.Context) {
			if c.cmd == cmd {
				w.hear(ctx, c, text)
			}
		})
	})
	go func() { // ends with the process
		err := cmd.Wait()
		w.send(func(ctx context.Context) {
			w.rest(ctx, c, time.Now(), err)
		})
	}()
}

// greet says the first word to a role, before it is there, and returns its ear if it is the one that speaks to the guard.
func (w *warden) greet(c *child, line *net.UnixConn) *ear {
	e := &ear{tell: func(text string) { _ = sendNow(line, text) }} // who has ended, or takes nothing any more, asks again
	if c.Name == w.Front {
		w.guard.greet(e)
		return e
	}
	e.tell(tellsHello + " 0 0")
	return nil
}

// hear takes note of what a child says. Words that this warden does not know are left alone: a role may be newer than it.
func (w *warden) hear(ctx context.Context, c *child, text string) {
	word, rest, _ := strings.Cut(text, " ")
	ran := w.awake.look(time.Now())
	switch word {
	case saysStarting:
		c.said = rest
		c.silence.starting(ran)
	case saysAlive:
		c.said = "alive"
		if c.silence.alive(ran) {
			w.Log.LogAttrs(ctx, slog.LevelInfo, "child answers", slog.String("child", c.Name), slog.Int("pid", c.pid()),
				slog.Duration("after", time.Since(c.began).Round(time.Millisecond)))
		}
	case saysWants:
		w.want(ctx, c, rest, true)
	case saysUnwants:
		w.want(ctx, c, rest, false)
	case saysEnding:
		c.said = "ending"
		if c.killAt.IsZero() {
			c.killAt = time.Now().Add(endGrace)
		}
	}
}

// rest notes that a child has ended and when it is started again.
func (w *warden) rest(ctx context.Context, c *child, now time.Time, why error) {
	ran := time.Duration(0)
	if c.cmd != nil {
		ran = now.Sub(c.began)
	}
	pause := c.backoff.next(c.cmd != nil && c.silence.ready, ran)
	c.cmd = nil
	c.startAt = now.Add(pause)
	if w.ending || c.Off {
		return
	}
	w.Log.LogAttrs(ctx, slog.LevelWarn, "child ended, starting it again", slog.String("child", c.Name), slog.Any("err", why),
		slog.Duration("after", pause))
}

// lineMax bounds one message of a role.
const lineMax = 512

// listen hands on what comes over the line until its other end is closed.
func listen(line *net.UnixConn, hear func(string)) {
	defer func() { _ = line.Close() }() // read only
	message := make([]byte, lineMax)
	for {
		n, err := line.Read(message)
		if err != nil {
			return // io.EOF, since nothing else can happen to a socket pair
		}
		hear(string(message[:n]))
	}
}

// sendNow sends a message, or fails when the other end takes no more: nobody waits for it.
func sendNow(conn *net.UnixConn, text string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) {
		sent = unix.Send(int(fd), []byte(text), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}); err != nil {
		return err
	}
	return sent
}

// socketPair makes a role's line: our end, and the one that the role inherits.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	// Messages with borders, in order, and the end of one side is seen by the other (unix(7), SOCK_SEQPACKET).
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fault.New(fault.NoResources, "line: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "line")
	if ours, err = connOf(os.NewFile(uintptr(fds[0]), "line")); err != nil {
		_ = theirs.Close() // nothing was said
		return nil, nil, err
	}
	return ours, theirs, nil
}

// connOf makes a connection of a file, which it closes.
func connOf(file *os.File) (*net.UnixConn, error) {
	defer func() { _ = file.Close() }() // the connection has a duplicate
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fault.New(fault.Internal, "line: %w", err)
	}
	line, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fault.New(fault.Internal, "line: it is no unix socket"), conn.Close())
	}
	return line, nil
}
