package parent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// child is a shell that writes its role and pid to a fifo-like log when it starts, and when it is told to end.
func child(log, role, then string) Child {
	script := fmt.Sprintf(`trap 'echo end %s >> %s; exit 0' TERM; echo start %s $$ >> %s; %s`, role, log, role, log, then)
	return Child{Role: role, Args: []string{"-c", script}}
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

func TestChildrenAreKeptAndEndInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	log := &follow{t, bufio.NewReader(file)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, "/bin/sh", []Child{child(path, "store", waits), child(path, "agent", waits)}, slog.New(slog.DiscardHandler))
	}()
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
	var again int
	if _, err := fmt.Sscanf(log.next(), "start agent %d", &again); err != nil || again == pids["agent"] {
		t.Fatalf("agent was %d and came back as %d (%v)", pids["agent"], again, err)
	}
	// The agent ends first, since the store must still be there for its last words.
	cancel()
	if first, second := log.next(), log.next(); first != "end agent" || second != "end store" {
		t.Errorf("ended in the order %q, %q", first, second)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	log := &follow{t, bufio.NewReader(file)}
	// Like a QEMU: a session of its own, whose parent has ended before it.
	script := fmt.Sprintf(`(setsid sh -c 'echo orphan $$ >> %s' &); %s`, path, waits)
	go func() {
		done <- Run(ctx, "/bin/sh", []Child{{Role: "agent", Args: []string{"-c", script}}}, slog.New(slog.DiscardHandler))
	}()
	var pid int
	if _, err := fmt.Sscanf(log.next(), "orphan %d", &pid); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d stayed as a zombie", pid)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
