// Package rig starts QEMU for the tests of the guests: plainly, with COM1 and QMP on unix sockets, and migrates from one to the next. It is no driver:
// what Godwit itself does with QEMU is internal/driver/qemu, which the guests must not need.
package rig

import (
	"bufio"
	"encoding/json"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// WaitMax bounds every wait for a guest or QEMU; it is generous, as the machine may be busy with other tests.
const WaitMax = 60 * time.Second

// linesMax bounds what a guest may say before the test looks.
const linesMax = 1000

// Machine is a QEMU process. One goroutine may use it.
type Machine struct {
	Started time.Time
	COM1    net.Conn      // the guest's first serial port; Lines reads it
	Lines   <-chan string // what the guest says there, line by line; closed at its end
	Exited  <-chan error  // the process's end; closed after it

	t       testing.TB
	args    []string
	binary  string
	monitor net.Conn
	replies *json.Decoder
}

// Start runs a QEMU binary with args and returns when COM1 and QMP are connected. It ends with the test.
func Start(t testing.TB, binary string, args ...string) *Machine {
	t.Helper()
	dir := t.TempDir()
	com1 := Listen(t, filepath.Join(dir, "com1"))
	qmp := Listen(t, filepath.Join(dir, "qmp"))
	all := append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
		"-chardev", "socket,id=com1,path=" + com1.Addr().String(), "-serial", "chardev:com1",
		"-chardev", "socket,id=qmp,path=" + qmp.Addr().String(), "-mon", "chardev=qmp,mode=control",
	}, args...)
	m := &Machine{t: t, Started: time.Now(), args: args, binary: binary}
	cmd := exec.CommandContext(t.Context(), binary, all...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; make setup installs QEMU", err)
	}
	exited, gone := make(chan error, 1), make(chan struct{})
	m.Exited = exited
	go func() {
		exited <- cmd.Wait()
		close(exited)
		close(gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("%s said: %s", binary, stderr.String())
		}
	})
	m.COM1 = Accept(t, com1)
	m.Lines = read(t, m.COM1)
	m.monitor = Accept(t, qmp)
	m.replies = json.NewDecoder(m.monitor)
	m.Do("qmp_capabilities", nil)
	return m
}

// Listen listens on a unix socket for the length of the test.
func Listen(t testing.TB, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Accept waits for QEMU to connect.
func Accept(t testing.TB, l *net.UnixListener) net.Conn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(WaitMax))
	conn, err := l.Accept()
	if err != nil {
		t.Fatalf("QEMU did not connect to %s: %v", l.Addr(), err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// read passes on the lines of COM1 as they come. It must not wait for the test: QEMU writes single bytes, of which a unix socket holds less
// than three hundred, and what finds no room is lost.
func read(t testing.TB, com1 net.Conn) <-chan string {
	lines := make(chan string, linesMax)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for scanner := bufio.NewScanner(com1); scanner.Scan(); {
			select {
			case lines <- scanner.Text():
			default: // nobody reads; the test will see the gap if it matters
			}
		}
	}()
	t.Cleanup(func() {
		_ = com1.Close()
		<-done
	})
	return lines
}

// Line returns the guest's next line.
func (m *Machine) Line() string {
	m.t.Helper()
	select {
	case line, ok := <-m.Lines:
		if !ok {
			m.t.Fatal("the guest's console ended")
		}
		return line
	case <-time.After(WaitMax):
		m.t.Fatal("the guest fell silent")
	}
	return ""
}

// Do runs a QMP command and returns its answer; events that come first are skipped.
func (m *Machine) Do(command string, arguments map[string]any) map[string]any {
	m.t.Helper()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	_ = m.monitor.SetDeadline(time.Now().Add(WaitMax))
	if err := json.NewEncoder(m.monitor).Encode(request); err != nil {
		m.t.Fatalf("qmp %s: %v", command, err)
	}
	for {
		var reply map[string]any
		if err := m.replies.Decode(&reply); err != nil {
			m.t.Fatalf("qmp %s: %v", command, err)
		}
		if said, failed := reply["error"]; failed {
			m.t.Fatalf("qmp %s: %v", command, said)
		}
		if answer, ok := reply["return"]; ok {
			object, _ := answer.(map[string]any) // some commands answer with something else, which nobody here reads
			return object
		}
	}
}

// Pace is how a migration is made to take some rounds.
type Pace struct {
	Bandwidth  int           // bytes per second until Rounds is reached
	DowntimeMS int           // so low until then that the guest's writes do not meet it
	Rounds     int           // then both are lifted
	Poll       time.Duration // between two looks at the migration
}

// Migrate moves the guest to a new QEMU with the same arguments, of which rename may change some (paths of sockets), and returns that.
func (m *Machine) Migrate(pace Pace, rename func(string) string) *Machine {
	m.t.Helper()
	args := make([]string, 0, len(m.args)+2)
	for _, arg := range m.args {
		if rename != nil {
			arg = rename(arg)
		}
		args = append(args, arg)
	}
	target := Start(m.t, m.binary, append(args, "-incoming", "defer")...)
	target.args = args
	address := "unix:" + filepath.Join(m.t.TempDir(), "stream")
	target.Do("migrate-incoming", map[string]any{"uri": address})
	m.Do("migrate-set-parameters", map[string]any{"max-bandwidth": pace.Bandwidth, "downtime-limit": pace.DowntimeMS})
	m.Do("migrate", map[string]any{"uri": address})
	ticker := time.NewTicker(pace.Poll) // QMP has no call that waits
	defer ticker.Stop()
	lifted := false
	for deadline := time.Now().Add(WaitMax); ; <-ticker.C {
		status := m.Do("query-migrate", nil)
		switch status["status"] {
		case "completed":
			return target
		case "failed", "cancelled":
			m.t.Fatalf("migration: %v", status)
		case "active":
			ram, _ := status["ram"].(map[string]any)
			if rounds, _ := ram["dirty-sync-count"].(float64); int(rounds) >= pace.Rounds && !lifted {
				m.Do("migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 30, "downtime-limit": 1000})
				lifted = true
			}
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("migration does not end: %v", status)
		}
	}
}
