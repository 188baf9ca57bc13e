package warden

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// shell is one that writes its role and pid to a fifo-like log when it starts, and when it is told to end.
func shell(log, role, then string) Role {
	script := fmt.Sprintf(`trap 'echo end %s >> %s; exit 0' TERM; echo start %s $$ >> %s; %s`, role, log, role, log, then)
	return Role{Name: role, Args: []string{"-c", script}}
}

const waits = `while :; do sleep 0.02; done`

// follow returns the next line of the log; it waits for it by the file growing, bounded by the test's own deadline.
type follow struct {
	t *testing.T
	r *bufio.Reader
}

func (f *follow) next() string {
	f.t.Helper()
	line := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		part, err := f.r.ReadString('\n')
		line += part
		if err == nil {
			return strings.TrimSpace(line)
		}
		if err != io.EOF {
			f.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // the file has no event
	}
	f.t.Fatalf("no line came after %q", line)
	return ""
}

// run runs a warden until the returned function is called, which waits for its end.
func run(t *testing.T, binary string, roles ...Role) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	dir := t.TempDir()
	go func() {
		done <- Run(ctx, Config{Binary: binary, Roles: roles, Front: "agent", RunDir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// newLog returns the path of a log and what follows it.
func newLog(t *testing.T) (string, *follow) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return path, &follow{t, bufio.NewReader(file)}
}

// pid reads "WORD PID" from the log.
func (f *follow) pid(word string) (pid int) {
	f.t.Helper()
	line := f.next()
	if _, err := fmt.Sscanf(line, word+" %d", &pid); err != nil {
		f.t.Fatalf("the log says %q, not %q and a process", line, word)
	}
	return pid
}

func TestChildrenAreKeptAndEndInOrder(t *testing.T) {
	path, log := newLog(t)
	end := run(t, "/bin/sh", shell(path, "store", waits), shell(path, "agent", waits))
	defer end()
	pids := map[string]int{}
	for range 2 {
		var role string
		var pid int
		if _, err := fmt.Sscanf(log.next(), "start %s %d", &role, &pid); err != nil {
			t.Fatal(err)
		}
		pids[role] = pid
	}
	// A child that is killed comes back as another process.
	if err := syscall.Kill(pids["agent"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if again := log.pid("start agent"); again == pids["agent"] {
		t.Fatalf("agent was %d and came back as %d", pids["agent"], again)
	}
	// The agent ends first, since the store must still be there for its last words.
	end()
	if first, second := log.next(), log.next(); first != "end agent" || second != "end store" {
		t.Errorf("ended in the order %q, %q", first, second)
	}
}

// A role that is off runs when the agent wants it, and ends, and is not started again, when the agent does not.
func TestARoleRunsWhenTheAgentWantsIt(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path, log := newLog(t)
	other, off := newLog(t)
	end := run(t, self, Role{Name: "store", Args: []string{"role", other}, Off: true}, Role{Name: "agent", Args: []string{"role", path}})
	defer end()
	agent := log.pid("start")
	for range 2 {
		if err := syscall.Kill(agent, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		pid := off.pid("start")
		if err := syscall.Kill(agent, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		if ended := off.pid("end"); ended != pid {
			t.Errorf("process %d ended, not %d", ended, pid)
		}
	}
	end()
	if text, err := os.ReadFile(other); err != nil || strings.Count(string(text), "start") != 2 {
		t.Errorf("%v: the store's starts and ends were\n%s", err, text)
	}
}

// The story: a role deadlocks, another time it is stopped. It still exists both times, and is replaced.
func TestTheSilentAreKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path, log := newLog(t)
	end := run(t, self, Role{Name: "agent", Args: []string{"role", path}})
	defer end()
	first := log.pid("start")
	if err := syscall.Kill(first, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	log.pid("hangs")
	second := log.pid("start")
	if err := syscall.Kill(second, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	third := log.pid("start")
	if first == second || second == third {
		t.Errorf("processes %d, %d, %d", first, second, third)
	}
	end()
	if pid := log.pid("end"); pid != third {
		t.Errorf("process %d ended in order, not %d", pid, third)
	}
}

func TestOneWardenForAHost(t *testing.T) {
	dir := t.TempDir()
	if holder, err := Holder(dir); err != nil || holder != "" {
		t.Errorf("nobody runs here, and it is %q (%v)", holder, err)
	}
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Config{Binary: "/bin/false", RunDir: dir, Log: slog.New(slog.DiscardHandler)})
	if want := fmt.Sprintf("process %d", os.Getpid()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), want) {
		t.Errorf("the second warden says %v, without %q", err, want)
	}
	if holder, err := Holder(dir); err != nil || holder != strconv.Itoa(os.Getpid()) {
		t.Errorf("holder is %q (%v)", holder, err)
	}
	unlock()
	if holder, err := Holder(dir); err != nil || holder != "" {
		t.Errorf("after its end the holder is %q (%v)", holder, err)
	}
}

// The story: a role of a former warden takes its time to die; the next one waits for it and says so.
func TestClaimWaitsForTheFormerRole(t *testing.T) {
	dir := t.TempDir()
	release, err := Claim(t.Context(), dir, "switch", nil)
	if err != nil {
		t.Fatal(err)
	}
	warden, role, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer warden.Close()
	conn, err := connOf(role)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	claimed := make(chan error, 1)
	go func() {
		again, err := Claim(t.Context(), dir, "switch", &Line{conn: conn})
		if err == nil {
			again()
		}
		claimed <- err
	}()
	message := make([]byte, lineMax)
	n, err := warden.Read(message)
	if want := fmt.Sprintf("starting waits for the former switch, process %d, to end", os.Getpid()); err != nil || string(message[:n]) != want {
		t.Errorf("it says %q (%v), not %q", message[:n], err, want)
	}
	release()
	if err := <-claimed; err != nil {
		t.Error(err)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	path, log := newLog(t)
	// Like a QEMU: a session of its own, whose parent has ended before it.
	script := fmt.Sprintf(`(setsid sh -c 'echo orphan $$ >> %s' &); %s`, path, waits)
	end := run(t, "/bin/sh", Role{Name: "agent", Args: []string{"-c", script}})
	defer end()
	pid := log.pid("orphan")
	for end := time.Now().Add(20 * time.Second); !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d stayed as a zombie", pid)
		}
	}
}
