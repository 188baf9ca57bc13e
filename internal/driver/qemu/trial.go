package qemu

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
)

// trial is a QEMU for a probe. Unlike a VM's it must not outlive us: it is killed when its context ends, and by the
// kernel when we die.
type trial struct {
	dir    string
	conn   *qmp.Conn
	serial *net.UnixListener // QEMU connects COM1 to it, if the arguments of serialArgs are used
	cancel context.CancelFunc
	ended  chan struct{}
	worker sync.WaitGroup
}

// trialName is what the serial socket and the ROM of a trial are called in its directory.
const (
	trialSerial = "serial.sock"
	trialROM    = "rom"
)

// startTrial runs binary as user and returns when its monitor answers. Arguments may use the placeholders SERIAL and ROM for
// the paths of those files; rom may be nil. The caller closes the trial.
func startTrial(ctx context.Context, binary string, user *User, rom []byte, args ...string) (_ *trial, err error) {
	dir, err := os.MkdirTemp("", "godwit-trial-")
	if err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &trial{dir: dir, cancel: cancel, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.serial, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, trialSerial), Net: "unix"}); err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, trialROM), rom, 0o644); err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	monitor := filepath.Join(dir, "qmp.sock")
	socket, err := listenFile(monitor, user)
	if err != nil {
		return nil, err
	}
	for _, path := range []string{dir, filepath.Join(dir, trialSerial)} {
		if err := user.Own(path); err != nil {
			_ = socket.Close() // nothing was written to it
			return nil, err
		}
	}
	err = t.run(ctx, binary, user, socket, t.arguments(args))
	_ = socket.Close() // QEMU has its own duplicate
	if err != nil {
		return nil, err
	}
	if t.conn, err = qmp.Dial(ctx, monitor); err != nil {
		return nil, t.explain(ctx, binary, err)
	}
	return t, nil
}

// explain turns the loss of the monitor into QEMU's last words. The socket is closed a moment before the process is gone.
func (t *trial) explain(ctx context.Context, binary string, err error) error {
	moment, cancel := context.WithTimeout(ctx, endingTimeMax)
	defer cancel()
	select {
	case <-t.ended:
		return fault.New(fault.Unavailable, "%s has ended: %s", binary, oneLine(tail(t.log())))
	case <-moment.Done():
		return err
	}
}

// arguments returns args with the placeholders filled in, after what every trial has.
func (t *trial) arguments(args []string) []string {
	all := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
	}
	for _, a := range args {
		switch a {
		case "SERIAL":
			a = "socket,id=serial,path=" + escape(filepath.Join(t.dir, trialSerial))
		case "ROM":
			a = filepath.Join(t.dir, trialROM)
		}
		all = append(all, a)
	}
	return all
}

// serialArgs connect COM1 and load the ROM.
var serialArgs = []string{"-chardev", "SERIAL", "-serial", "chardev:serial", "-bios", "ROM"}

func (t *trial) log() string { return filepath.Join(t.dir, "log") }

// run starts the process and a goroutine that waits for it.
func (t *trial) run(ctx context.Context, binary string, user *User, socket *os.File, args []string) error {
	log, err := os.Create(t.log())
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user.credential(), Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	t.worker.Go(func() {
		// The kernel sends the death signal when the thread ends that started the process, so this one must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_ = log.Close() // only QEMU writes to it
		started <- err
		if err == nil {
			_ = cmd.Wait() // a probe's QEMU is always killed; what it said is in the log
			close(t.ended)
		}
	})
	err = <-started
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.NotFound, "%w: run make setup, or install qemu-system-x86", err)
	case err != nil:
		return fault.New(fault.Internal, "run qemu as %s: %w", user, err)
	}
	return nil
}

// console returns the connection to COM1, which QEMU makes before its monitor answers. It ends with ctx.
func (t *trial) console(ctx context.Context) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = t.serial.Close() })
	defer stop()
	conn, err := t.serial.Accept()
	if err != nil {
		return nil, fault.New(fault.Unavailable, "serial port: %w", err)
	}
	return conn, nil
}

// close kills the process and removes everything.
func (t *trial) close() {
	if t.conn != nil {
		t.conn.Close()
	}
	t.cancel()
	t.worker.Wait()
	if t.serial != nil {
		_ = t.serial.Close() // a listener has nothing to lose
	}
	_ = os.RemoveAll(t.dir) // a left-over in the temporary directory harms nobody
}
