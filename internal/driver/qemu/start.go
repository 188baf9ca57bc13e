package qemu

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Config is what Start needs.
type Config struct {
	Spec inventory.VMSpec
	Env  Env
	User *User // unprivileged user, only possible as root; nil: whoever we are
	// Cgroup is the path of the VM's own cgroup below the cgroup v2 mount, like "godwit/host-1/vm-abc"; "": none.
	Cgroup string
	// Files are inherited by QEMU as descriptors from FirstFile on, in this order. They stay the caller's to close.
	Files []*os.File
}

// monitorFD is the number that QEMU knows its inherited monitor socket by: the first after stdin, stdout and stderr.
const monitorFD = 3

// FirstFile is the number that QEMU knows the first of Config.Files by.
const FirstFile = monitorFD + 1

// Start starts the VM's QEMU with stopped vCPUs and returns when its monitor answers. The caller then says cont, or
// migrate-incoming. On an error nothing is left behind: no process, no run directory, no cgroup.
//
// Errors: fault.Exists when the run directory belongs to a QEMU that runs, fault.Invalid for a spec that cannot be run, fault.Conflict
// with QEMU's own last words when it refuses to start, fault.Unavailable when it does not answer before ctx ends.
func Start(ctx context.Context, cfg Config) (_ *Process, err error) {
	defer func() { err = fault.Wrap("start", "vm "+cfg.Spec.Name, err) }()
	cfg.Env.monitorFD = monitorFD
	args, err := CommandLine(cfg.Spec, cfg.Env)
	if err != nil {
		return nil, err
	}
	if err := ownImages(cfg); err != nil {
		return nil, err
	}
	dir := cfg.Env.RunDir
	if err := makeRunDir(dir, cfg.User); err != nil {
		return nil, err
	}
	p := &Process{dir: dir, user: cfg.User, done: make(chan struct{})}
	p.record = record{Name: cfg.Spec.Name, Binary: cmp.Or(cfg.Env.Abilities.Path, DefaultBinary)}
	p.record.Cgroup, p.noCgroup = makeCgroup(cfg.Cgroup)
	defer func() {
		if err != nil {
			// The undo must also run when the caller's time is up; Kill has a bound of its own.
			err = errors.Join(err, p.undo(context.WithoutCancel(ctx)))
		}
	}()
	if err := p.exec(ctx, args, cfg.Files); err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx)
	if err != nil {
		return nil, explain(err, p)
	}
	p.monitor = conn
	return p, nil
}

// undo removes what a Start that failed has made.
func (p *Process) undo(ctx context.Context) error {
	if p.pidfd != nil {
		if err := p.Kill(ctx); err != nil {
			return err // it lives: run directory and record must stay for Adopt
		}
		return p.Cleanup()
	}
	return errors.Join(os.RemoveAll(string(p.dir)), removeCgroup(p.record.Cgroup))
}

// makeRunDir makes a fresh run directory of the user's. What a QEMU that has ended left there is removed.
func makeRunDir(dir RunDir, user *User) error {
	if pid, ok := runningIn(dir); ok {
		return fault.New(fault.Exists, "it runs already, as process %d", pid)
	}
	if err := os.RemoveAll(string(dir)); err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	// The folders above are for everybody to pass through, the directory is the user's alone.
	err := os.MkdirAll(filepath.Dir(string(dir)), 0o755)
	if err == nil {
		err = os.Mkdir(string(dir), 0o700)
	}
	if err != nil {
		return fault.New(fault.Internal, "run directory: %w", err)
	}
	return user.Own(string(dir))
}

// ownImages gives the VM's images to its user, as they belong to this VM alone. What a thin clone stands on is not among them: QEMU opens that
// for reading only, and it stays as it is. Where the file system forbids it, and
// the owner is another, QEMU will say what it cannot open.
func ownImages(cfg Config) error {
	for _, d := range cfg.Spec.Disks {
		path, err := cfg.Env.File(d.File)
		if err != nil {
			return fault.Wrap("", "disk "+d.Name, err)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "disk %s: there is no image %s: is its datastore mounted here?", d.Name, path)
		}
		if cfg.User.owns(path) {
			continue
		}
		if err := cfg.User.Own(path); err != nil && !fault.Is(err, fault.Denied) {
			return fault.Wrap("", "disk "+d.Name, err)
		}
	}
	return ownVars(cfg)
}

// ownVars is ownImages for the UEFI variables, which must be of the firmware's size too.
func ownVars(cfg Config) error {
	if !cfg.Spec.Boot.UEFI {
		return nil
	}
	path, err := cfg.Env.File(cfg.Spec.Boot.Vars)
	if err == nil {
		err = cfg.Env.Firmware.CheckVars(path)
	}
	if err != nil {
		return err
	}
	if cfg.User.owns(path) {
		return nil
	}
	if err := cfg.User.Own(path); err != nil && !fault.Is(err, fault.Denied) {
		return fault.Wrap("", "UEFI variables", err)
	}
	return nil
}

// exec starts QEMU and records it. The monitor socket is made here and inherited: a connection waits in its queue until QEMU
// is ready, so nobody has to poll for it, and one to a QEMU that ended fails at once.
func (p *Process) exec(ctx context.Context, args []string, files []*os.File) error {
	socket, err := listenFile(p.dir.Monitor(), p.user)
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }() // QEMU has its own duplicate
	log, err := os.OpenFile(p.dir.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	defer func() { _ = log.Close() }() // only QEMU writes to it
	cmd, err := p.spawn(ctx, args, append([]*os.File{socket}, files...), log)
	if err != nil {
		return err
	}
	p.cmd = cmd
	p.record.PID = cmd.Process.Pid
	p.pidfd, err = openPidfd(cmd.Process.Pid)
	if err != nil {
		_ = cmd.Process.Kill() // without a pidfd we could not follow it
		_ = cmd.Wait()
		return fault.New(fault.Internal, "pidfd of process %d: %w", cmd.Process.Pid, err)
	}
	exposed(cmd.Process.Pid)
	// Until watch reaps it, even a QEMU that has ended at once can be looked at.
	err = p.record.write(p.dir)
	p.watching.Go(p.watch)
	return err
}

// spawn executes QEMU in a session of its own, so that no terminal and no signal to our group reaches it, as the
// unprivileged user and, where there is one, in its cgroup from the first instruction.
func (p *Process) spawn(ctx context.Context, args []string, files []*os.File, log *os.File) (*exec.Cmd, error) {
	for {
		// QEMU outlives whoever asked for it, so ctx's end must not kill it.
		cmd := exec.CommandContext(context.WithoutCancel(ctx), p.record.Binary, args...)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
		cmd.Stdout, cmd.Stderr = log, log
		cmd.ExtraFiles = files
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: p.user.credential()}
		err := startIn(cmd, p.record.Cgroup)
		switch {
		case err == nil:
			// Only its end is waited for from here on; the command line would stay in memory as long as the VM.
			cmd.Args, cmd.Env, cmd.ExtraFiles = nil, nil, nil
			return cmd, nil
		case p.record.Cgroup != "" && cgroupRefused(err):
			p.noCgroup = "no own cgroup: " + err.Error()
			err := removeCgroup(p.record.Cgroup)
			p.record.Cgroup = ""
			if err != nil {
				return nil, err
			}
		case errors.Is(err, fs.ErrNotExist):
			return nil, fault.New(fault.NotFound, "%w: run make setup, or install qemu-system-x86", err)
		case errors.Is(err, fs.ErrPermission):
			return nil, fault.New(fault.Denied, "run qemu as %s: %w", p.user, err)
		default:
			return nil, fault.New(fault.Internal, "%w", err)
		}
	}
}

// exposed takes from QEMU what it may have inherited of its agent's protection from the kernel's out-of-memory killer (proc(5),
// oom_score_adj): a VM is as likely to be chosen as any other process.
func exposed(pid int) {
	// QEMU may be gone already, and where there is no protection there is none to take.
	_ = os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte("0"), 0)
}

// startIn starts cmd in the cgroup, if one is given. The kernel puts it there while it is cloned (CLONE_INTO_CGROUP, clone(2)).
func startIn(cmd *exec.Cmd, cgroup string) error {
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }() // read only
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(dir.Fd())
	}
	return cmd.Start()
}

// cgroupRefused reports whether the kernel or a sandbox round us would not clone into a cgroup: no clone3 before 5.7 or
// under an old seccomp filter, no permission for the cgroup, a cgroup with threads only.
func cgroupRefused(err error) bool {
	for _, no := range []error{syscall.ENOSYS, syscall.EACCES, syscall.EPERM, syscall.EOPNOTSUPP, syscall.EBUSY, syscall.EINVAL} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// listenFile makes a listening socket at path that belongs to user, and returns its file.
func listenFile(path string, user *User) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }() // the file below is a duplicate
	file, err := l.File()
	if err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	if err := user.Own(path); err != nil {
		_ = file.Close() // nothing was written to it
		return nil, err
	}
	return file, nil
}

// explain turns "the monitor is gone" into what QEMU said before it ended, with a hint where its words need one.
func explain(err error, p *Process) error {
	select {
	case <-p.done:
	default:
		return err
	}
	said := p.Exit().String()
	for _, h := range hints {
		if strings.Contains(said, h.text) {
			return fault.New(fault.Conflict, "%s: %s", said, strings.ReplaceAll(h.do, "USER", p.user.String()))
		}
	}
	return fault.New(fault.Conflict, "%s", said)
}

// hints say what to do about some of QEMU's last words (10.0's texts; others are shown without a hint). The first that fits counts.
var hints = []struct{ text, do string }{
	{`Failed to get "write" lock`, "another process uses the image: stop it, or start the VM where it runs"},
	{"Could not access KVM kernel", "put USER into the group of /dev/kvm, or run godwit doctor"},
	{"does not support O_DIRECT", "put the image on a file system that supports it, not on tmpfs"},
	{"Permission denied", "qemu runs as USER, which must be able to read the file and enter all folders on its path"},
	{"doesn't support requested", "choose a CPU model that godwit host info lists for this host"},
	{"unable to find CPU model", "choose a CPU model that godwit host info lists for this host"},
	{"unsupported machine type", "this host's qemu is too old for the VM: godwit host info lists its machine types"},
	{"Cannot allocate memory", "the host has too little memory for this VM"},
	{"cannot set up guest memory", "the host has too little memory for this VM"},
	{"Image is not in qcow2 format", "the disk's format is recorded as qcow2: check it with qemu-img info"},
	{"Could not open backing file", "the image that this one is a thin clone of is away, or USER cannot read it: see godwit image info"},
	{"No space left on device", "free some space on the datastore"},
	{"Read-only file system", "mount the datastore for writing"},
	{"io_uring", "what is known of this kernel is stale: run godwit doctor"},
}
