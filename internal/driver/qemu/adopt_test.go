package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// agentJob is set in the environment of a copy of this test that plays an agent: it starts the VM and waits to be killed.
const agentJob = "GODWIT_TEST_AGENT"

// job is a qemu.Config that fits into an environment variable.
type job struct {
	Datastore string
	Spec      inventory.VMSpec
	RunDir    qemu.RunDir
	Abilities qemu.Abilities
	Ports     map[string]string
	User      *qemu.User
	Cgroup    string
}

// text is the job to start what cfg says.
func (h house) text(cfg qemu.Config) string {
	h.t.Helper()
	text, err := json.Marshal(job{h.dir, cfg.Spec, cfg.Env.RunDir, cfg.Env.Abilities, cfg.Env.Ports, cfg.User, cfg.Cgroup})
	try(h.t, err)
	return string(text)
}

func (j job) config() qemu.Config {
	file := func(f inventory.File) (string, error) { return filepath.Join(j.Datastore, f.Path), nil }
	return qemu.Config{
		Spec: j.Spec, User: j.User, Cgroup: j.Cgroup,
		Env: qemu.Env{RunDir: j.RunDir, Abilities: j.Abilities, Ports: j.Ports, File: file},
	}
}

func TestMain(m *testing.M) {
	if text := os.Getenv(agentJob); text != "" {
		playAgent(text)
	}
	// The VMs of killed agents become our children, as they become the warden's, so that somebody reaps them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func playAgent(text string) {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p, err := qemu.Start(context.Background(), j.config())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := p.QMP().Cont(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started", p.PID())
	select {} // until killed
}

// agent is a process of its own that has started a VM.
type agent struct {
	cmd *exec.Cmd
	pid int // QEMU's
}

func (h house) agent(cfg qemu.Config) agent {
	h.t.Helper()
	return h.run(exec.Command("/proc/self/exe"), h.text(cfg))
}

// run starts cmd, which is this test again, with a job, and waits until it has started its VM.
func (h house) run(cmd *exec.Cmd, text string) agent {
	h.t.Helper()
	cmd.Env = append(os.Environ(), agentJob+"="+text)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	try(h.t, err)
	try(h.t, cmd.Start())
	a := agent{cmd: cmd}
	h.t.Cleanup(a.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		h.t.Fatalf("the agent said %q: %v", line, err)
	}
	pid, ok := strings.CutPrefix(strings.TrimSpace(line), "started ")
	if !ok {
		h.t.Fatalf("the agent said %q", line)
	}
	a.pid, err = strconv.Atoi(pid)
	try(h.t, err)
	h.t.Cleanup(func() {
		_ = syscall.Kill(a.pid, syscall.SIGKILL) // nobody else can have the PID before it is reaped
		if _, err := syscall.Wait4(a.pid, nil, 0, nil); err != nil {
			h.t.Errorf("reap process %d: %v", a.pid, err)
		}
	})
	return a
}

// kill kills the agent as kill -9 does.
func (a agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (h house) adopt(dir qemu.RunDir) *qemu.Process {
	h.t.Helper()
	p, err := qemu.Adopt(within(h.t), dir)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { end(h.t, p) })
	return p
}

func TestVMOutlivesItsAgentAndIsAdopted(t *testing.T) {
	h := newHouse(t)
	cfg := h.config(h.heart("web-1"), "a")
	first := h.agent(cfg)
	first.kill()

	p := h.adopt(cfg.Env.RunDir)
	if p.PID() != first.pid {
		t.Errorf("adopted process %d, the agent had started %d", p.PID(), first.pid)
	}
	status, err := p.QMP().Status(within(t))
	try(t, err)
	if !status.Running {
		t.Errorf("the VM is %s", status.State)
	}
	guest := listen(t, p)
	if a, b := guest.next(), guest.next(); b <= a {
		t.Errorf("the guest counted %d, then %d", a, b)
	}
	if os.Geteuid() == 0 {
		if cgroup, why := p.Cgroup(); cgroup == "" {
			t.Errorf("the cgroup is forgotten: %s", why)
		}
		if p.User() == nil || p.User().UID != h.user.UID {
			t.Errorf("adopted as %v, runs as %v", p.User(), h.user)
		}
	}
	try(t, syscall.Kill(p.PID(), syscall.SIGTERM)) // QEMU ends by itself
	exit, err := p.Wait(within(t))
	try(t, err)
	if exit.Known {
		t.Errorf("how can we know how somebody else's child ended? %v", exit)
	}
	if !strings.Contains(exit.Stderr, "terminating on signal 15") {
		t.Errorf("its last words are lost: %q", exit.Stderr)
	}
}

func TestAgentKilledBeforeItsRecordLosesNoVM(t *testing.T) {
	h := newHouse(t)
	cfg := h.config(h.heart("web-1"), "a")
	first := h.agent(cfg)
	first.kill()
	try(t, os.Remove(filepath.Join(string(cfg.Env.RunDir), "pid")))

	if _, err := qemu.Start(within(t), cfg); !fault.Is(err, fault.Exists) {
		t.Errorf("a second start: %v", err)
	}
	if err := qemu.Remove(cfg.Env.RunDir); !fault.Is(err, fault.Conflict) {
		t.Errorf("remove under a running QEMU: %v", err)
	}
	p := h.adopt(cfg.Env.RunDir)
	if p.PID() != first.pid {
		t.Errorf("adopted process %d, the agent had started %d", p.PID(), first.pid)
	}
	if cgroup, _ := p.Cgroup(); os.Geteuid() == 0 && !strings.HasSuffix(cgroup, cfg.Cgroup) {
		t.Errorf("cgroup %q", cgroup)
	}
}

func TestOnlyTheSameProcessIsAdopted(t *testing.T) {
	h := newHouse(t)
	if _, err := qemu.Adopt(within(t), qemu.RunDir(h.dir+"/nowhere")); !fault.Is(err, fault.NotFound) {
		t.Errorf("no directory: %v", err)
	}
	p := h.start(h.config(h.heart("web-1"), "a"))
	record := filepath.Join(string(p.Dir()), "pid")
	text, err := os.ReadFile(record)
	try(t, err)
	for what, change := range map[string]func(map[string]any){
		"reused by another": func(r map[string]any) { r["start_time"] = r["start_time"].(float64) + 1 },
		"of another boot":   func(r map[string]any) { r["boot_id"] = "b" },
		"of nobody":         func(r map[string]any) { r["pid"] = 1 << 30 },
	} {
		var r map[string]any
		try(t, json.Unmarshal(text, &r))
		change(r)
		changed, err := json.Marshal(r)
		try(t, err)
		try(t, os.WriteFile(record, changed, 0o600))
		if _, err := qemu.Adopt(within(t), p.Dir()); !fault.Is(err, fault.NotFound) {
			t.Errorf("a PID %s: %v", what, err)
		}
	}
	try(t, os.WriteFile(record, []byte("{"), 0o600))
	if _, err := qemu.Adopt(within(t), p.Dir()); !fault.Is(err, fault.Internal) {
		t.Errorf("a broken record: %v", err)
	}
	try(t, p.Kill(within(t)))
	try(t, os.WriteFile(record, text, 0o600))
	if _, err := qemu.Adopt(within(t), p.Dir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("a process that has ended: %v", err)
	}
	try(t, qemu.Remove(p.Dir()))
	if _, err := os.Stat(string(p.Dir())); !os.IsNotExist(err) {
		t.Error("the run directory is left")
	}
}

func TestAQEMUThatIsSilentIsAdoptedAllTheSame(t *testing.T) {
	h := newHouse(t)
	cfg := h.config(h.heart("web-1"), "a")
	first := h.agent(cfg)
	first.kill()
	try(t, syscall.Kill(first.pid, syscall.SIGSTOP))

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	p, err := qemu.Adopt(ctx, cfg.Env.RunDir)
	if p == nil || !fault.Is(err, fault.Unavailable) {
		t.Fatalf("process %v, %v", p, err)
	}
	defer end(t, p)
	try(t, syscall.Kill(first.pid, syscall.SIGCONT))
	try(t, p.Redial(within(t)))
	_, err = p.QMP().Status(within(t))
	try(t, err)
}

// An agent without privileges must do as well: no cgroup, no other user, the rest the same.
func TestAnUnprivilegedAgentRunsVMsToo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("all other tests run without privileges already")
	}
	h := newHouse(t)
	cfg := h.config(h.heart("web-1"), "a")
	try(t, h.user.Own(h.dir))
	binary := filepath.Join(h.dir, "agent") // where the user can execute it
	self, err := os.Executable()
	try(t, err)
	try(t, exec.Command("cp", self, binary).Run())
	cmd := exec.Command(binary)
	cmd.Dir = h.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: h.user.UID, Gid: h.user.GID}}
	cfg.User = nil
	first := h.run(cmd, h.text(cfg))
	first.kill()

	p := h.adopt(cfg.Env.RunDir)
	if uid := procStatus(t, p.PID(), "Uid:"); !strings.HasPrefix(uid, strconv.Itoa(int(h.user.UID))) {
		t.Errorf("qemu runs as uid %s", uid)
	}
	if cgroup, why := p.Cgroup(); cgroup != "" || why == "" {
		t.Errorf("cgroup %q, %q", cgroup, why)
	}
	listen(t, p).next()
}
