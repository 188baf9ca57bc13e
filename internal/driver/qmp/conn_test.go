package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "test"}, "capabilities": ["oob"]}}`

// server plays QEMU: the test reads what it was asked and writes what it answers.
type server struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

// request is a command as QEMU sees it.
type request struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments"`
	ID        uint64         `json:"id"`
}

func (s *server) say(format string, args ...any) {
	if _, err := fmt.Fprintf(s.conn, format+"\r\n", args...); err != nil {
		s.t.Errorf("say: %v", err)
	}
}

func (s *server) hear() request {
	var r request
	if !s.lines.Scan() {
		s.t.Errorf("heard nothing: %v", s.lines.Err())
		return r
	}
	if err := json.Unmarshal(s.lines.Bytes(), &r); err != nil {
		s.t.Errorf("heard %q", s.lines.Text())
	}
	return r
}

// dial returns a connection whose other end the test plays, after the negotiation.
func dial(t *testing.T) (*qmp.Conn, *server) {
	t.Helper()
	ours, theirs := net.Pipe()
	s := &server{t: t, conn: theirs, lines: bufio.NewScanner(theirs)}
	var negotiation sync.WaitGroup
	negotiation.Go(func() {
		s.say(greeting)
		r := s.hear()
		if r.Execute != "qmp_capabilities" {
			t.Errorf("the first command was %s", r.Execute)
		}
		s.say(`{"return": {}, "id": %d}`, r.ID)
	})
	conn, err := qmp.Open(t.Context(), ours, "test")
	negotiation.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		_ = theirs.Close()
	})
	return conn, s
}

// The stories with net.Pipe run in a bubble, where nothing is buffered and "blocked" is a fact, not a guess about time.
func story(t *testing.T, tell func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, tell)
}

func TestAnswersFindTheirCallsInAnyOrder(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		if v := conn.Greeting().Version.QEMU; v.Major != 10 || v.Micro != 2 {
			t.Errorf("greeted by %+v", v)
		}
		var calls sync.WaitGroup
		results := make([]qmp.Status, 2)
		for i := range results {
			calls.Go(func() {
				if err := conn.Do(t.Context(), fmt.Sprintf("query-%d", i), nil, &results[i]); err != nil {
					t.Error(err)
				}
			})
		}
		a, b := s.hear(), s.hear()
		for _, r := range []request{b, a} {
			s.say(`{"return": {"status": "%s"}, "id": %d}`, r.Execute, r.ID)
		}
		calls.Wait()
		for i, r := range results {
			if want := fmt.Sprintf("query-%d", i); string(r.State) != want {
				t.Errorf("call %s got the answer %s", want, r.State)
			}
		}
	})
}

func TestCommandsGoOutInTheOrderOfTheirSendsBeforeAnyAnswer(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		used := conn.SendQueue(t.Context(), "/machine/nic0", 0)
		goOn := conn.SendMigrateContinue(t.Context())
		a, b := s.hear(), s.hear() // nothing was answered yet
		if a.Execute != qmp.QueueStatusCommand || b.Execute != "migrate-continue" {
			t.Fatalf("heard %s, then %s", a.Execute, b.Execute)
		}
		s.say(`{"error": {"class": "GenericError", "desc": "not now"}, "id": %d}`, b.ID)
		s.say(`{"return": {"used-idx": 7}, "id": %d}`, a.ID)
		if q, err := qmp.Queued(t.Context(), used); q.Used != 7 || q.Room || err != nil {
			t.Errorf("got %+v, %v", q, err)
		}
		if err := goOn.Wait(t.Context(), nil); err == nil || err.Error() != "qmp migrate-continue: not now" {
			t.Errorf("got %v", err)
		}
		conn.Close()
		if err := conn.SendMigrateContinue(t.Context()).Wait(t.Context(), nil); !fault.Is(err, fault.Unavailable) {
			t.Errorf("over a closed connection: %v", err)
		}
	})
}

func TestRefusalKeepsQEMUsWords(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		for class, kind := range map[string]fault.Kind{
			"GenericError": fault.Conflict, "CommandNotFound": fault.Incompatible, "DeviceNotFound": fault.NotFound, "NeverHeardOf": fault.Conflict,
		} {
			var call sync.WaitGroup
			call.Go(func() {
				err := conn.Cont(t.Context())
				var refusal *qmp.Error
				if !errors.As(err, &refusal) || string(refusal.Class) != class || !fault.Is(err, kind) {
					t.Errorf("%s: %v of kind %v", class, err, fault.KindOf(err))
				}
				if want := `qmp cont: Failed to get "write" lock`; err == nil || err.Error() != want {
					t.Errorf("got %v, want %s", err, want)
				}
			})
			r := s.hear()
			s.say(`{"error": {"class": %q, "desc": "Failed to get \"write\" lock"}, "id": %d}`, class, r.ID)
			call.Wait()
		}
	})
}

func TestCallThatWasGivenUpLeavesTheConnectionUsable(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var call sync.WaitGroup
		call.Go(func() {
			_, err := conn.Status(ctx)
			if !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) || qmp.Unsent(err) {
				t.Errorf("%v of kind %v, unsent %v", err, fault.KindOf(err), qmp.Unsent(err))
			}
		})
		late := s.hear()
		call.Wait() // QEMU has read the command and says nothing for a second
		call.Go(func() {
			status, err := conn.Status(t.Context())
			if err != nil || status.State != "the second" {
				t.Errorf("%+v, %v", status, err)
			}
		})
		next := s.hear()
		s.say(`{"return": {"status": "the first"}, "id": %d}`, late.ID)
		s.say(`{"return": {"status": "the second"}, "id": %d}`, next.ID)
		call.Wait()
	})
}

func TestCallThatQEMUNeverReadIsKnownToHaveNoEffect(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		stuck, release := context.WithCancel(t.Context())
		var calls sync.WaitGroup
		calls.Go(func() { // the writer hangs on this one: nobody reads
			if err := conn.Stop(stuck); qmp.Unsent(err) || !fault.Is(err, fault.Canceled) {
				t.Errorf("a command that was begun: %v", err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := conn.Cont(ctx); !qmp.Unsent(err) || !fault.Is(err, fault.Unavailable) {
			t.Errorf("a command that waits behind it: %v", err)
		}
		release()
		calls.Wait()
		calls.Go(func() {
			if err := conn.Quit(t.Context()); err != nil {
				t.Error(err)
			}
		})
		if r := s.hear(); r.Execute != "stop" {
			t.Errorf("heard %s", r.Execute)
		}
		r := s.hear() // cont is never heard
		if r.Execute != "quit" {
			t.Errorf("heard %s", r.Execute)
		}
		s.say(`{"return": {}, "id": %d}`, r.ID)
		calls.Wait()
	})
}

func TestCallsBeyondTheQueueWaitForNobody(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, _ := dial(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var calls sync.WaitGroup
		var unsent int
		var mu sync.Mutex
		for range qmp.QueuedCallsMax + 10 {
			calls.Go(func() {
				err := conn.Stop(ctx)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					t.Error("answered by nobody")
				}
				if qmp.Unsent(err) {
					unsent++
				}
			})
		}
		calls.Wait()
		if want := qmp.QueuedCallsMax + 9; unsent != want {
			t.Errorf("%d calls were never sent, want all but the one being written: %d", unsent, want)
		}
	})
}

func TestAllCallsEndWithTheConnection(t *testing.T) {
	for what, end := range map[string]func(*qmp.Conn, *server){
		"QEMU closes":              func(_ *qmp.Conn, s *server) { _ = s.conn.Close() },
		"we close":                 func(c *qmp.Conn, _ *server) { c.Close() },
		"QEMU says what is no QMP": func(_ *qmp.Conn, s *server) { s.say("qemu: assertion failed") },
		"QEMU could not read": func(_ *qmp.Conn, s *server) {
			s.say(`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`)
		},
		"a reply without an id":      func(_ *qmp.Conn, s *server) { s.say(`{"return": {}}`) },
		"a message of no known kind": func(_ *qmp.Conn, s *server) { s.say(`{"id": 1}`) },
	} {
		t.Run(what, func(t *testing.T) {
			story(t, func(t *testing.T) {
				conn, s := dial(t)
				events := conn.Subscribe()
				var call sync.WaitGroup
				call.Go(func() {
					if _, err := conn.Status(t.Context()); !fault.Is(err, fault.Unavailable) {
						t.Errorf("the call under way: %v", err)
					}
				})
				s.hear()
				end(conn, s)
				call.Wait()
				<-conn.Done()
				if err := conn.Cont(t.Context()); !fault.Is(err, fault.Unavailable) {
					t.Errorf("the next call: %v", err)
				}
				if _, open := <-events.C; open || !fault.Is(events.Err(), fault.Unavailable) {
					t.Errorf("the subscription: open %v, %v", open, events.Err())
				}
				if late := conn.Subscribe(); !fault.Is(late.Err(), fault.Unavailable) {
					t.Errorf("a later subscription: %v", late.Err())
				}
				conn.Close()
				conn.Close()
			})
		})
	}
}

func TestDialWaitsForItsTurnAndNotForEver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp.sock")
	if _, err := qmp.Dial(t.Context(), path); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = qmp.Dial(ctx, path)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no greeting") {
		t.Errorf("no greeting: %v", err)
	}
}

func TestAMessageBeyondTheBoundEndsTheConnection(t *testing.T) {
	story(t, func(t *testing.T) {
		conn, s := dial(t)
		var flood sync.WaitGroup
		flood.Go(func() {
			chunk := make([]byte, 64<<10)
			for i := range chunk {
				chunk[i] = 'x'
			}
			for {
				if _, err := s.conn.Write(chunk); err != nil {
					return
				}
			}
		})
		<-conn.Done()
		flood.Wait()
		if err := conn.Err(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "too long") {
			t.Errorf("%v", err)
		}
	})
}

func TestFilesArePassed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var qemu sync.WaitGroup
	qemu.Go(func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		playReceiver(t, conn)
	})
	conn, err := qmp.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.GetFD(t.Context(), "stream", w); err != nil {
		t.Fatal(err)
	}
	// Ours is still open, and closing it leaves QEMU's.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	qemu.Wait()
	said := make([]byte, 5)
	if n, err := r.Read(said); err != nil || string(said[:n]) != "hello" {
		t.Errorf("through the passed file came %q, %v", said[:n], err)
	}

	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() { // ends with the pipe
		s := &server{t: t, conn: theirs, lines: bufio.NewScanner(theirs)}
		s.say(greeting)
		s.say(`{"return": {}, "id": %d}`, s.hear().ID)
	}()
	other, err := qmp.Open(t.Context(), ours, "pipe")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.GetFD(t.Context(), "stream", r); !fault.Is(err, fault.Invalid) {
		t.Errorf("over a connection that passes no files: %v", err)
	}
	if other.Err() != nil {
		t.Errorf("and it ended the connection: %v", other.Err())
	}
}
