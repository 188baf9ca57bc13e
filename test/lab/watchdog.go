package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/driver/host"
)

// watchdogVariable makes the binary that links this package the watchdog of the host in the folder that it names.
const watchdogVariable = "GODWIT_LAB_WATCHDOG"

// init turns a re-executed test or demo binary into a watchdog before its main begins.
func init() {
	if dir := os.Getenv(watchdogVariable); dir != "" {
		if err := watch(dir, os.Getenv(watchdogVariable+"_HOST")); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "lab watchdog:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Reset is a reset of a host's machine: everything that ran on it is dead, its run directory is empty as after a boot, and it will start in
// another boot. Moments are of CLOCK_BOOTTIME.
type Reset struct {
	Due   time.Duration // when the watchdog was to fire; 0: somebody pulled the plug
	Fired time.Duration // when it did
	Dead  time.Duration // when the last process was gone
}

// Late is how much later than due the last process was gone.
func (r Reset) Late() time.Duration { return r.Dead - r.Due }

// resetsMax bounds the resets of one host that nobody has asked for yet.
const resetsMax = 64

// dog is a host's watchdog, a process outside of the host.
type dog struct {
	cmd   *exec.Cmd
	pipe  io.WriteCloser
	fired chan Reset // every reset, in order
	done  sync.WaitGroup
}

// watchdogName is what godwit run is told of its watchdog.
func (h *Host) watchdogName() string {
	if h.dog == nil {
		return ""
	}
	return "unix:" + filepath.Join(h.Folder(), "watchdog")
}

// Folder is everything of the host, which every process of the host has on its command line.
func (h *Host) Folder() string { return filepath.Dir(h.Run) }

// startDog starts the host's watchdog, which waits for the host to open it.
func (h *Host) startDog() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self) //nolint:noctx // it ends when its standard input does
	cmd.Env = append(os.Environ(), watchdogVariable+"="+h.Folder(), watchdogVariable+"_HOST="+h.Name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal for us reaches it
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	d := &dog{cmd: cmd, pipe: pipe, fired: make(chan Reset, resetsMax)}
	lines := bufio.NewScanner(said)
	if !lines.Scan() { // "ready": its socket is there
		return errors.Join(fmt.Errorf("watchdog of %s does not start", h.Name), d.dismiss())
	}
	h.dog = d
	d.done.Go(func() {
		for lines.Scan() {
			if lines.Text() == "fires" {
				h.fires()
				continue
			}
			h.wasReset(lines.Text())
		}
	})
	return h.reboot()
}

// dismiss ends the watchdog without a reset.
func (d *dog) dismiss() error {
	if d == nil {
		return nil
	}
	err := d.pipe.Close()
	d.done.Wait()
	return errors.Join(err, d.cmd.Wait())
}

// wasReset takes a line of the watchdog: the machine is dead, and what a boot would clear is cleared.
func (h *Host) wasReset(text string) {
	var due, fired, dead int64
	if _, err := fmt.Sscanf(text, "reset %d %d %d", &due, &fired, &dead); err != nil {
		panic("lab: the watchdog says " + text)
	}
	if err := h.afterReset(); err != nil {
		panic("lab: after a reset: " + err.Error()) // nothing that follows would be what it seems
	}
	h.dog.fired <- Reset{time.Duration(due), time.Duration(fired), time.Duration(dead)}
}

// WaitReset waits until the host's watchdog has reset its machine, and takes note of it once. The host can be started again with Up.
func (h *Host) WaitReset(ctx context.Context) (Reset, error) {
	if h.dog == nil {
		return Reset{}, fmt.Errorf("%s has no watchdog: set Options.Watchdog", h.Name)
	}
	select {
	case r := <-h.dog.fired:
		return r, nil
	case <-ctx.Done():
		return Reset{}, fmt.Errorf("%s was not reset: %w", h.Name, ctx.Err())
	}
}

// Resets returns how often the host was reset by its watchdog since somebody asked WaitReset.
func (h *Host) Resets() int {
	if h.dog == nil {
		return 0
	}
	return len(h.dog.fired)
}

// BreakWatchdog stops the host's watchdog from counting, until somebody feeds it again.
func (h *Host) BreakWatchdog() error {
	_, err := io.WriteString(h.dog.pipe, "off\n")
	return err
}

// fires tells who wants to know that the machine is about to die.
func (h *Host) fires() {
	if tell := h.cluster.options.Fires; tell != nil {
		tell(h)
	}
}

// PullPlug ends everything that runs on the host at once, as a machine that loses its power would; with Options.Cables not even the kernel tells
// the others that connections are over, or that nobody listens any more. It can be started again with Up.
func (h *Host) PullPlug() error {
	h.fires()
	if h.namespace != nil {
		if err := h.Cut(true, true); err != nil {
			return err
		}
		h.mu.Lock()
		h.dark = true
		h.mu.Unlock()
	}
	if h.dog != nil {
		// A machine without power has no watchdog that counts.
		if err := h.BreakWatchdog(); err != nil {
			return err
		}
	}
	return errors.Join(killHost(h.Folder(), h.Name), h.afterReset())
}

// afterReset brings the host to where a machine is right after a boot.
func (h *Host) afterReset() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		<-h.ended
		h.cmd = nil
	}
	for _, pid := range orphans() {
		// Those of the host that have become our children; a process that still runs is nobody's of the dead.
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	}
	removeCgroup(h.cgroup())
	return errors.Join(os.RemoveAll(h.Run), h.reboot())
}

// orphans lists our children that have ended and were not started by us: QEMUs of dead hosts, above all.
func orphans() []int {
	var ended []int
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil // the pattern is fixed and well formed
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			stat, err := os.ReadFile("/proc/" + word + "/stat")
			pid, bad := strconv.Atoi(word)
			if err != nil || bad != nil {
				continue // it was reaped meanwhile
			}
			if name := string(stat); strings.Contains(name, "(qemu-system") && strings.Contains(name, ") Z ") {
				ended = append(ended, pid)
			}
		}
	}
	return ended
}

// cgroup is the folder of the cgroups of the host's VMs, "" where there are none. Its name is no pattern: it has backslashes.
func (h *Host) cgroup() string {
	mount := host.CgroupMount()
	if mount == "" {
		return ""
	}
	return filepath.Join(mount, warden.PlainCgroup(h.Run), h.Name)
}

// bootID is the file that the host finds where the kernel says which boot it is in.
func (h *Host) bootID() string { return filepath.Join(h.Folder(), "boot_id") }

// reboot gives the host the id of another boot.
func (h *Host) reboot() error {
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	if err := os.Remove(h.bootID()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(h.bootID(), id, 0o444) //nolint:gosec // everybody may read which boot it is
}

// command returns the command that starts the host. One with a watchdog has its own boot id, in a mount namespace of its own.
func (h *Host) command(args ...string) *exec.Cmd {
	if h.dog == nil {
		return exec.Command(h.cluster.options.Binary, args...) //nolint:noctx // ends with Down or Close
	}
	script := `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, h.bootID(), h.cluster.options.Binary}, args...)...) //nolint:noctx // as above
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}                                           // Go makes its mounts private to it
	return cmd
}

// timer is what the watchdog counts.
type timer struct {
	mu      sync.Mutex
	timeout time.Duration
	due     time.Duration // 0: it is off
	alarm   *host.Alarm
}

func (t *timer) set(timeout, from time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if timeout > 0 {
		t.timeout = timeout
	}
	if t.timeout == 0 {
		return nil // fed before it was armed
	}
	t.due = from + t.timeout
	return t.alarm.Set(t.due)
}

func (t *timer) off() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.due, t.timeout = 0, 0
}

// takeDue returns when the watchdog was to fire, and takes it off, if that is over; 0 if it is not.
func (t *timer) takeDue() (due time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.due == 0 {
		return 0, nil
	}
	if host.Boottime() < t.due {
		return 0, t.alarm.Set(t.due)
	}
	due, t.due, t.timeout = t.due, 0, 0
	return due, nil
}

// watch is the watchdog of the host in the folder, until its standard input ends. It speaks the protocol of driver/watchdog (socket.go).
func watch(dir, name string) error {
	// Hardware does not wait for a processor.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -15) // without that right it is as punctual as others
	alarm, err := host.NewAlarm()
	if err != nil {
		return err
	}
	t := &timer{alarm: alarm}
	socket, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "watchdog"), Net: "unixpacket"})
	if err != nil {
		return err
	}
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	go func() { // ends with the process
		for {
			conn, err := socket.Accept()
			if err != nil {
				return
			}
			go t.serve(conn)
		}
	}()
	over := make(chan struct{})
	go func() { // ends with the process
		defer close(over)
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			t.off() // whatever it says: there is one word
		}
	}()
	for {
		select {
		case <-over:
			return nil
		case <-alarm.C:
		}
		due, err := t.takeDue()
		if err != nil {
			return err
		}
		if due == 0 {
			continue
		}
		fired := host.Boottime()
		if _, err := fmt.Println("fires"); err != nil {
			return err
		}
		if err := killHost(dir, name); err != nil {
			return err
		}
		if _, err := fmt.Printf("reset %d %d %d\n", due, fired, host.Boottime()); err != nil {
			return err
		}
	}
}

// serve hears one connection; its end changes nothing.
func (t *timer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }() // who has ended hears nothing
	message := make([]byte, 128)
	for {
		n, err := conn.Read(message)
		if err != nil {
			return
		}
		var ms, moment int64
		word, rest, _ := strings.Cut(string(message[:n]), " ")
		answer := ""
		switch word {
		case "arm":
			if _, err = fmt.Sscan(rest, &ms, &moment); err == nil {
				answer, err = "armed", t.set(time.Duration(ms)*time.Millisecond, time.Duration(moment))
			}
		case "feed":
			if _, err = fmt.Sscan(rest, &moment); err == nil {
				err = t.set(0, time.Duration(moment))
			}
		case "disarm":
			t.off()
			answer = "off"
		}
		if err == nil && answer != "" {
			_, err = io.WriteString(conn, answer)
		}
		if err != nil {
			return
		}
	}
}

// killHost kills every process of the host in the folder until none is left.
func killHost(dir, name string) error {
	cgroups, err := host.OpenCgroups(warden.PlainCgroup(filepath.Join(dir, "run")))
	for end := time.Now().Add(sweepMax); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err == nil {
			if err := cgroups.Kill(name); err != nil {
				return err
			}
		}
		left := named(dir)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is what is wanted
		}
	}
	return fmt.Errorf("processes %v of %s do not end", named(dir), name)
}
