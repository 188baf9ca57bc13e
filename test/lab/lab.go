// Package lab is a whole Godwit cluster on this machine, out of the real binary: hosts with data folders and loopback addresses of
// their own, one shared datastore, a Linux guest, and a client on the guest's network segment. The demo, the tests in
// test/ and the benchmark run on it.
//
// Whatever a Cluster starts ends with it: Close ends every process that has the cluster's folder on its command line and
// removes the folder, and a guard process does the same when the one that holds the Cluster dies without Close.
package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

// upMax bounds how long a host may take to answer after it was started: the probes of QEMU are part of it.
const upMax = 60 * time.Second

// downMax bounds how long a host may take to end in order.
const downMax = 15 * time.Second

// Options say what cluster is wanted.
type Options struct {
	Binary string // godwit
	CLI    string // godwit for the command line; empty: Binary. One with the race detector takes a second to start
	Hosts  int
	Subnet string    // first three bytes of the hosts' addresses; empty: a random 127.x.y, so that clusters do not meet
	QEMU   string    // empty: the installed one
	Cache  string    // for probes; empty: one of the cluster's own
	Log    io.Writer // the hosts' logs; nil: a file per host in the cluster's folder
	Cables bool      // each host in a network namespace of its own, with a cable to a LAN (cables.go); needs root
	Run    []string  // more flags for godwit run
	Init   []string  // more flags for godwit init
	// Watchdog gives each host a watchdog of its own outside of it, which ends all of its processes when it was not fed (watchdog.go).
	Watchdog bool
	// Fires is called when a host's machine is reset by its watchdog or loses its power. Of a watchdog's reset some of its processes may be dead
	// already, as the watchdog waits for nobody.
	Fires func(host *Host)
	// Storage returns the folder by which a host has the shared datastore, when it is not the plain one; what it mounts there is unmounted by Close.
	Storage func(c *Cluster, host *Host) (string, error)
}

// Cluster is a running cluster. Its methods may be called by many goroutines.
type Cluster struct {
	Dir       string // everything of the cluster
	Datastore string // folder of the shared datastore "shared"
	Hosts     []*Host

	options Options
	lan     *LAN // with Options.Cables
	guard   *guard
	close   sync.Once
	closed  error
}

// Host is one host of a Cluster.
type Host struct {
	Name    string
	Address string
	Data    string
	Run     string
	Socket  string // of the agent

	cluster    *Cluster
	namespace  *namespace // nil: the one that we are in
	shared     string     // where it has the shared datastore
	datastores []string   // instead of the shared one
	dog        *dog       // with Options.Watchdog
	mu         sync.Mutex
	cmd        *exec.Cmd
	ended      chan struct{}
	dark       bool // its power is off, and its kernel with it: it is cut off until Start
}

// Start makes a cluster and returns when every host answers. On an error nothing is left.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	// The QEMUs that outlive their hosts become our children, so that sweep can reap them (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	// /tmp and a short name, since unix sockets below it may have 108 bytes at most.
	dir, err := os.MkdirTemp("/tmp", "gw-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // QEMU's user passes through
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c := &Cluster{Dir: dir, Datastore: filepath.Join(dir, "shared"), options: o}
	if c.guard, err = startGuard(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := os.Mkdir(c.Datastore, 0o755); err != nil { //nolint:gosec // as above
		return nil, err
	}
	if o.Cables {
		if c.lan, err = newLAN(filepath.Base(dir)); err != nil {
			return nil, err
		}
		o.Subnet = managementNet
	}
	subnet := o.Subnet
	if subnet == "" {
		subnet = fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), rand.IntN(250)) //nolint:gosec // no secret
	}
	for i := range o.Hosts {
		h, err := c.newHost(i, subnet)
		if err != nil {
			return nil, err
		}
		c.Hosts = append(c.Hosts, h)
	}
	first := c.Hosts[0]
	if _, err := first.Godwit(ctx, slices.Concat([]string{"init"}, first.flags(), o.Init)...); err != nil {
		return nil, err
	}
	if err := first.Up(ctx); err != nil {
		return nil, err
	}
	for _, h := range c.Hosts[1:] {
		if err := h.Join(ctx); err != nil {
			return nil, err
		}
		if err := h.Start(); err != nil {
			return nil, err
		}
	}
	for _, h := range c.Hosts[1:] {
		if err := h.WaitUp(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cluster) newHost(i int, subnet string) (*Host, error) {
	name := fmt.Sprintf("host-%d", i+1)
	dir := filepath.Join(c.Dir, fmt.Sprintf("h%d", i+1))
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // QEMU's user passes through
		return nil, err
	}
	h := &Host{
		Name: name, Address: fmt.Sprintf("%s.%d", subnet, 11+i), Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run"),
		Socket: filepath.Join(dir, "run", "agent.sock"), cluster: c,
	}
	if c.lan != nil {
		var err error
		if h.namespace, err = c.lan.addHost(i+1, h.Address); err != nil {
			return nil, err
		}
	}
	h.shared = c.Datastore
	if c.options.Storage != nil {
		var err error
		if h.shared, err = c.options.Storage(c, h); err != nil {
			return nil, err
		}
	}
	if c.options.Watchdog {
		return h, h.startDog()
	}
	return h, nil
}

// AddWitness joins one more machine that runs no VMs, running. It answers no command line.
func (c *Cluster) AddWitness(ctx context.Context) (*Host, error) {
	at := c.Hosts[0].Address
	h, err := c.newHost(len(c.Hosts), at[:strings.LastIndex(at, ".")])
	if err != nil {
		return nil, err
	}
	token, err := c.door().Godwit(ctx, "token", "create")
	if err != nil {
		return nil, err
	}
	if _, err := h.Godwit(ctx, "witness", strings.TrimSpace(string(token)), "--data", h.Data, "--name", h.Name, "--address", h.Address); err != nil {
		return nil, err
	}
	c.Hosts = append(c.Hosts, h)
	return h, h.Start()
}

// door is the first host that runs.
func (c *Cluster) door() *Host {
	for _, h := range c.Hosts {
		h.mu.Lock()
		runs := h.cmd != nil
		h.mu.Unlock()
		if runs {
			return h
		}
	}
	return c.Hosts[0]
}

// AddHost joins one more host, running. With datastores, each as --datastore wants it, it has those and not the shared one.
func (c *Cluster) AddHost(ctx context.Context, datastores ...string) (*Host, error) {
	at := c.Hosts[0].Address
	h, err := c.newHost(len(c.Hosts), at[:strings.LastIndex(at, ".")])
	if err != nil {
		return nil, err
	}
	h.datastores = datastores
	if err := h.Join(ctx); err != nil {
		return nil, err
	}
	c.Hosts = append(c.Hosts, h)
	return h, h.Up(ctx)
}

// flags are what init and join want to know.
func (h *Host) flags() []string {
	o := h.cluster.options
	cache := o.Cache
	if cache == "" {
		cache = filepath.Join(h.cluster.Dir, "cache")
	}
	flags := []string{"--data", h.Data, "--name", h.Name, "--address", h.Address, "--qemu", o.QEMU, "--probe-cache", cache}
	datastores := h.datastores
	if len(datastores) == 0 {
		datastores = []string{"shared=" + h.shared}
	}
	for _, d := range datastores {
		flags = append(flags, "--datastore", d)
	}
	return flags
}

// Join makes the host a member, by a token of the first host that runs.
func (h *Host) Join(ctx context.Context) error {
	token, err := h.cluster.door().Godwit(ctx, "token", "create")
	if err != nil {
		return err
	}
	_, err = h.Godwit(ctx, append([]string{"join", strings.TrimSpace(string(token))}, h.flags()...)...)
	return err
}

// Up starts the host and waits until it answers.
func (h *Host) Up(ctx context.Context) error {
	if err := h.Start(); err != nil {
		return err
	}
	return h.WaitUp(ctx)
}

// Start starts the host and does not wait for it.
func (h *Host) Start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		return fmt.Errorf("%s runs already", h.Name)
	}
	if h.dark {
		if err := h.Cut(false, false); err != nil {
			return err
		}
		h.dark = false
	}
	log := h.cluster.options.Log
	if log == nil {
		f, err := os.OpenFile(h.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // the child has its own
		log = f
	}
	// Never this machine's own watchdog: tests kill wardens.
	args := append([]string{"run", "--data", h.Data, "--run", h.Run, "--watchdog-device", h.watchdogName()}, h.cluster.options.Run...)
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = log, log
	if os.Getenv("GORACE") == "" {
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=50") // the race detector sleeps for a second at each process' end
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for the one who holds the cluster
	if err := h.namespace.do(cmd.Start); err != nil {
		return err
	}
	h.cmd, h.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) { // ends with the process
		_ = cmd.Wait() // how it ended stands in its log
		close(ended)
	}(h.ended)
	return nil
}

// LogPath is where the host's log is, unless Options.Log was given.
func (h *Host) LogPath() string { return filepath.Join(h.cluster.Dir, h.Name+".log") }

// Alarm finds what no host's log may have, and returns the log from there on; "": nothing.
func Alarm(log []byte) string {
	for _, word := range []string{"WARNING: DATA RACE", "panic: ", "panic serving ", "fatal error: ", "hand-over rule violated"} {
		if at := bytes.Index(log, []byte(word)); at >= 0 {
			return string(log[at:])
		}
	}
	return ""
}

// WaitUp waits until the host's agent answers and knows its VMs.
func (h *Host) WaitUp(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, upMax)
	defer done()
	for {
		_, err := h.Godwit(ctx, "host", "info")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not come up: %w\n%s", h.Name, err, h.logTail())
		case <-h.ended:
			return fmt.Errorf("%s ended: %s", h.Name, h.logTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (h *Host) logTail() string {
	text, err := os.ReadFile(h.LogPath())
	if err != nil {
		return ""
	}
	return string(text[max(0, len(text)-4096):])
}

// Down ends the host in order; its VMs run on.
func (h *Host) Down() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd == nil {
		return nil
	}
	_ = h.cmd.Process.Signal(syscall.SIGTERM) // gone already is what is wanted
	select {
	case <-h.ended:
	case <-time.After(downMax):
		_ = h.cmd.Process.Kill() // as above
		<-h.ended
		h.cmd = nil
		return fmt.Errorf("%s did not end within %v", h.Name, downMax)
	}
	h.cmd = nil
	return nil
}

// KillWarden kills the host's main process as an out-of-memory killer would, and starts the next one, as systemd would. It returns
// when the first is gone; its roles may take a moment longer.
func (h *Host) KillWarden() error {
	h.mu.Lock()
	if h.cmd == nil {
		h.mu.Unlock()
		return fmt.Errorf("%s does not run", h.Name)
	}
	_ = h.cmd.Process.Kill() // gone already is what is wanted
	<-h.ended
	h.cmd = nil
	h.mu.Unlock()
	return h.Start()
}

// Godwit runs the command line of this host and returns its standard output. Its error carries what it said on standard
// error; ExitCode reads the code.
func (h *Host) Godwit(ctx context.Context, args ...string) ([]byte, error) {
	out, _, err := h.Command(ctx, args...)
	return out, err
}

// Interactive returns a command line of this host, whose inputs and outputs are the caller's to connect.
func (h *Host) Interactive(ctx context.Context, args ...string) *exec.Cmd {
	o := h.cluster.options
	cmd := exec.CommandContext(ctx, cmp.Or(o.CLI, o.Binary), args...)
	cmd.Env = append(os.Environ(), "GODWIT_SOCKET="+h.Socket)
	return cmd
}

// Command runs the command line of this host and returns both outputs.
func (h *Host) Command(ctx context.Context, args ...string) (stdout, stderr []byte, err error) {
	cmd := h.Interactive(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = h.namespace.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.Bytes(), errs.Bytes(), fmt.Errorf("godwit %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), errs.Bytes(), nil
}

// ExitCode returns the exit code that an error of Godwit carries, 0 for nil, -1 for none.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// Read runs a command with --json and reads its answer.
func (h *Host) Read(ctx context.Context, into proto.Message, args ...string) error {
	out, err := h.Godwit(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	return ReadJSON(out, into)
}

// ReadJSON reads what a command with --json has printed.
func ReadJSON(out []byte, into proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(out, into)
}

// Alone returns a command line without a cluster, for what needs no agent, or shall find none at the socket.
func Alone(binary, cli, socket string) *Host {
	return &Host{Socket: socket, cluster: &Cluster{options: Options{Binary: binary, CLI: cli}}}
}

// VM returns a VM as the host shows it.
func (h *Host) VM(ctx context.Context, name string) (*godwitv1.VM, error) {
	vm := &godwitv1.VM{}
	return vm, h.Read(ctx, vm, "vm", "info", name)
}

// PID returns the process of one of the host's roles: "agent", "switch", "store", "warden".
func (h *Host) PID(ctx context.Context, role string) (int, error) {
	info := &godwitv1.GetHostResponse{}
	if err := h.Read(ctx, info, "host", "info"); err != nil {
		return 0, err
	}
	for _, p := range info.GetProcesses() {
		if p.GetRole() == role {
			return int(p.GetPid()), nil
		}
	}
	return 0, fmt.Errorf("%s has no process %s", h.Name, role)
}

// LogsVariable names a folder that hosts' logs are copied to when their cluster is closed.
const LogsVariable = "GODWIT_LAB_LOGS"

// keepLogs copies the logs to where LogsVariable says; a failure to do so must not hide how the test went.
func (c *Cluster) keepLogs() {
	to := os.Getenv(LogsVariable)
	if to == "" {
		return
	}
	for _, h := range c.Hosts {
		if text, err := os.ReadFile(h.LogPath()); err == nil {
			_ = os.WriteFile(filepath.Join(to, filepath.Base(c.Dir)+"-"+h.Name+".log"), text, 0o600)
		}
	}
}

// Close ends every process of the cluster and removes its folder. It may be called again.
func (c *Cluster) Close() error {
	c.close.Do(func() {
		var all sync.WaitGroup
		errs := make([]error, len(c.Hosts))
		for i, h := range c.Hosts {
			all.Go(func() { errs[i] = h.Down() })
		}
		all.Wait()
		c.keepLogs()
		for _, h := range c.Hosts {
			errs = append(errs, h.dog.dismiss())
		}
		c.closed = errors.Join(errors.Join(errs...), sweep(c.Dir), c.lan.close())
		c.guard.dismiss()
	})
	return c.closed
}
