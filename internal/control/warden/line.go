package warden

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// lineVariable tells a role the number of the file descriptor of its line.
const lineVariable = "GODWIT_WARDEN_LINE"

// The words of a role, each a message of its own: what it does as it starts, that it serves and its loops run, that it
// ends. Those of authority are in words.go.
const (
	saysStarting = "starting"
	saysAlive    = "alive"
	saysEnding   = "ending"
	saysWants    = "wants"   // and a role's name: it is to run
	saysUnwants  = "unwants" // it is to end and stay away
)

// beatEvery is the pause between two signs of life: three may be missed within silentMax.
const beatEvery = 500 * time.Millisecond

// environment is what a role inherits: not what systemd means for the warden alone (sd_notify(3)).
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", lineVariable} {
			if strings.HasPrefix(v, name+"=") {
				return true
			}
		}
		return false
	})
}

// Line is a role's connection to its warden. A nil Line, of a role that was started by hand, says nothing to nobody. Its
// methods may be called by many goroutines.
type Line struct {
	conn *net.UnixConn
	log  *slog.Logger
	send func(text string) error // sends a word to the warden without waiting

	mu      sync.Mutex
	hello   hello // its fencing is the last that was told
	asked   uint64
	waiting map[uint64]chan error // for the answer to a question
}

// helloMax bounds the wait for the warden's first word, which it says before it starts a role.
const helloMax = 5 * time.Second

// Inherited returns the line to the warden that started this process, nil when none did. gone is called, from a goroutine
// of its own, when the warden has ended: a role must then end at once, since the next warden starts its own. It must be called
// once, before this process starts others, which would inherit the line.
func Inherited(gone func(), log *slog.Logger) (*Line, error) {
	text, ok := os.LookupEnv(lineVariable)
	if !ok {
		return nil, nil //nolint:nilnil // a nil Line works
	}
	if err := os.Unsetenv(lineVariable); err != nil {
		return nil, fault.New(fault.Internal, "line: %w", err)
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fault.New(fault.Invalid, "line: %s=%q is no file descriptor: only a warden sets it", lineVariable, text)
	}
	conn, err := connOf(os.NewFile(uintptr(fd), "line"))
	if err != nil {
		return nil, err
	}
	l := newLine(conn, log)
	if err := l.greet(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go func() { l.listen(); gone() }() // ends with the process
	return l, nil
}

func newLine(conn *net.UnixConn, log *slog.Logger) *Line {
	return &Line{conn: conn, log: log, send: func(text string) error { return sendNow(conn, text) }, waiting: map[uint64]chan error{}}
}

// Starting says what this role is doing as it starts. From one step to the next it has a minute, before it counts as hung.
func (l *Line) Starting(what string) { l.say(saysStarting + " " + what) }

// Ending says that this role has begun to end, which gives it ten seconds.
func (l *Line) Ending() { l.say(saysEnding) }

// Want says that another role of this host is to run, or to end and stay away, until the warden ends. Only the front role may; it says it
// again whenever it looks, since the next warden knows only what it was started with. That the role has ended is seen by Claim.
func (l *Line) Want(role string, on bool) {
	if on {
		l.say(saysWants + " " + role)
	} else {
		l.say(saysUnwants + " " + role)
	}
}

// Beat tells the warden that this role lives, every half a second and for the first time at once, until ctx ends. Each time prove is
// asked first: it returns when the role's own loops and locks have answered it, and an error means that they do not. A prove
// that hangs, or fails for two seconds, gets this process killed.
func (l *Line) Beat(ctx context.Context, prove func(context.Context) error) {
	if l == nil {
		return
	}
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		if err := prove(ctx); err == nil {
			l.say(saysAlive)
		} else if ctx.Err() == nil {
			l.log.LogAttrs(ctx, slog.LevelWarn, "no sign of life", slog.Any("err", err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			l.Ending()
			return
		}
	}
}

func (l *Line) say(text string) {
	if l == nil {
		return
	}
	if len(text) > lineMax {
		text = text[:lineMax]
	}
	_, _ = l.conn.Write([]byte(text)) // the warden is gone: the reader in Inherited says so
}
