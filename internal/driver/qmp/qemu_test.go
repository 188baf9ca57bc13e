package qmp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// waitMax bounds every wait for QEMU; it is generous, as the machine may be busy with other tests.
const waitMax = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	t.Cleanup(cancel)
	return ctx
}

// qemu is a real one, with a monitor socket that it inherits, so that nobody has to wait for it to appear.
type qemu struct {
	cmd    *exec.Cmd
	dir    string
	socket string
}

func start(t *testing.T, args ...string) qemu {
	t.Helper()
	q := qemu{dir: t.TempDir()}
	q.socket = filepath.Join(q.dir, "qmp.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: q.socket, Net: "unix"})
	try(t, err)
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	try(t, err)
	q.cmd = exec.Command("qemu-system-x86_64", append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
	}, args...)...)
	q.cmd.ExtraFiles = []*os.File{file}
	var stderr bytes.Buffer
	q.cmd.Stderr = &stderr
	if err := q.cmd.Start(); err != nil {
		t.Fatalf("%v; make setup installs QEMU", err)
	}
	try(t, errors.Join(l.Close(), file.Close()))
	t.Cleanup(func() {
		_ = q.cmd.Process.Kill()
		_ = q.cmd.Wait()
		if t.Failed() {
			t.Logf("qemu said: %s", stderr.String())
		}
	})
	return q
}

func (q qemu) dial(t *testing.T) *qmp.Conn {
	t.Helper()
	conn, err := qmp.Dial(within(t), q.socket)
	try(t, err)
	t.Cleanup(conn.Close)
	return conn
}

func (q qemu) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	try(t, q.cmd.Process.Signal(s))
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func next(t *testing.T, events *qmp.Events, names ...string) qmp.Event {
	t.Helper()
	for {
		select {
		case ev, open := <-events.C:
			if !open {
				t.Fatalf("no more events: %v", events.Err())
			}
			if slices.Contains(names, ev.Name) {
				return ev
			}
		case <-time.After(waitMax):
			t.Fatalf("no %v", names)
		}
	}
}

func TestStoppedQEMUCostsOnlyTheTimeThatWasGiven(t *testing.T) {
	q := start(t, "-machine", "none")
	conn := q.dial(t)
	q.signal(t, syscall.SIGSTOP)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := conn.Status(ctx)
	took := time.Since(began)
	if !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v of kind %v", err, fault.KindOf(err))
	}
	if took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	q.signal(t, syscall.SIGCONT)
	v, err := conn.Version(within(t))
	try(t, err)
	if v.QEMU.Major < 7 {
		t.Errorf("version %+v: the late answer to the first call?", v)
	}
	t.Logf("gave up after %v; QEMU %d.%d.%d then answers again", took.Round(time.Millisecond), v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
}

func TestManyCallsToAStoppedQEMUAllComeBack(t *testing.T) {
	q := start(t, "-machine", "none")
	conn := q.dial(t)
	q.signal(t, syscall.SIGSTOP)
	// More than the socket's buffer takes, so that the writer itself is stuck in the middle of a command.
	long := strings.Repeat("x", 100<<10)
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := conn.QOMGet(ctx, "/"+long, "x", nil); !fault.Is(err, fault.Unavailable) {
			t.Errorf("call %d: %v", i, fault.KindOf(err))
		}
		cancel()
	}
	q.signal(t, syscall.SIGCONT)
	_, err := conn.Status(within(t))
	try(t, err)
}

func TestKilledQEMUEndsEverything(t *testing.T) {
	q := start(t, "-machine", "none")
	conn := q.dial(t)
	events := conn.Subscribe()
	q.signal(t, syscall.SIGSTOP)
	answer := make(chan error, 1)
	go func() { answer <- conn.Cont(context.Background()) }()
	q.signal(t, syscall.SIGKILL)
	select {
	case err := <-answer:
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
	case <-time.After(waitMax):
		t.Fatal("the call hangs")
	}
	<-conn.Done()
	if _, open := <-events.C; open {
		t.Error("an event from a dead QEMU")
	}
}

func TestTheNextClientIsServedWhenTheFirstIsGone(t *testing.T) {
	q := start(t, "-machine", "none")
	first := q.dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(ctx, q.socket); !fault.Is(err, fault.Unavailable) {
		t.Errorf("while another one is served: %v", err)
	}
	first.Close()
	second := q.dial(t)
	_, err := second.Status(within(t))
	try(t, err)
}

// Every typed command against the real thing: that it is accepted, and that what comes back is understood.
func TestEveryCommandIsUnderstoodByQEMU(t *testing.T) {
	q := start(t, "-machine", "q35", "-m", "32M",
		"-blockdev", "driver=null-co,size=1048576,node-name=disk0", "-device", "virtio-blk-pci,drive=disk0,id=vd0",
		"-device", "pcie-root-port,id=port1,chassis=1", "-device", "virtio-net-pci,netdev=n0,romfile=", "-netdev", "hubport,id=n0,hubid=0")
	conn, ctx := q.dial(t), within(t)
	events := conn.Subscribe()

	try(t, conn.Cont(ctx))
	next(t, events, qmp.EventResume)
	try(t, conn.Stop(ctx))
	next(t, events, qmp.EventStop)
	s, err := conn.Status(ctx)
	try(t, err)
	if s.Running || s.State != qmp.StatePaused {
		t.Errorf("status %+v", s)
	}
	try(t, conn.Reset(ctx))
	if ev := next(t, events, qmp.EventReset); ev.Cause().Guest || ev.Cause().Reason != "host-qmp-system-reset" {
		t.Errorf("reset by %+v", ev.Cause())
	}
	try(t, conn.Powerdown(ctx))
	next(t, events, qmp.EventPowerdown)

	kvm, err := conn.KVM(ctx)
	if try(t, err); kvm.Enabled {
		t.Error("kvm under tcg")
	}
	machines, err := conn.Machines(ctx)
	if try(t, err); !slices.ContainsFunc(machines, func(m qmp.Machine) bool { return m.Alias == "q35" && m.CPUsMax > 1 }) {
		t.Error("no q35")
	}
	commands, err := conn.Commands(ctx)
	if try(t, err); !commands["query-commands"] || commands["nonsense"] {
		t.Error("commands")
	}
	options, err := conn.CommandLineOptions(ctx)
	if try(t, err); !options["machine"] {
		t.Error("no -machine")
	}
	nodes, err := conn.BlockNodes(ctx)
	if try(t, err); len(nodes) != 1 || nodes[0].Name != "disk0" || nodes[0].Driver != "null-co" {
		t.Errorf("nodes %+v", nodes)
	}
	disks, err := conn.BlockDevices(ctx)
	if try(t, err); len(disks) != 1 || disks[0].Inserted == nil || !strings.Contains(disks[0].QOMPath, "vd0") {
		t.Errorf("disks %+v", disks)
	}
	stats, err := conn.BlockStats(ctx)
	if try(t, err); len(stats) != 1 || stats[0].Node != "disk0" {
		t.Errorf("stats %+v", stats)
	}
	chars, err := conn.CharDevices(ctx)
	if try(t, err); !slices.ContainsFunc(chars, func(c qmp.CharDevice) bool { return c.ID == "qmp" && c.Open }) {
		t.Errorf("character devices %+v", chars)
	}
	cpus, err := conn.CPUs(ctx)
	if try(t, err); len(cpus) != 1 || cpus[0].ThreadID <= 0 {
		t.Errorf("cpus %+v", cpus)
	}
	models, err := conn.CPUModels(ctx)
	if try(t, err); !slices.ContainsFunc(models, func(m qmp.CPUModel) bool { return m.Name == "Westmere" && len(m.Unavailable) == 0 }) {
		t.Error("no Westmere")
	}
	for _, static := range []bool{true, false} {
		name, props, err := conn.ExpandCPUModel(ctx, "Westmere", static)
		if try(t, err); name == "" || len(props) == 0 {
			t.Errorf("expansion %s %v", name, props)
		}
	}
	if _, _, err := conn.ExpandCPUModel(ctx, "Z80", true); !fault.Is(err, fault.Conflict) {
		t.Errorf("a Z80: %v", err)
	}
	list, err := conn.QOMList(ctx, cpus[0].QOMPath)
	if try(t, err); !slices.ContainsFunc(list, func(p qmp.QOMProperty) bool { return p.Name == "vendor" }) {
		t.Error("the CPU has no vendor")
	}
	var vendor string
	try(t, conn.QOMGet(ctx, cpus[0].QOMPath, "vendor", &vendor))
	if err := conn.QOMGet(ctx, "/nowhere", "x", nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("a path that leads nowhere: %v", err)
	}
	types, err := conn.ObjectTypes(ctx, "device")
	if try(t, err); !types["virtio-net-pci"] {
		t.Error("no virtio-net-pci")
	}
	properties, err := conn.DeviceProperties(ctx, "virtio-net-pci")
	if try(t, err); !properties["mac"] || properties["nonsense"] {
		t.Error("properties")
	}
	try(t, conn.AnnounceSelf(ctx, qmp.AnnounceParameters{Initial: 50 * time.Millisecond, Max: time.Second, Rounds: 2, Step: 50 * time.Millisecond}))
	try(t, conn.DeviceAdd(ctx, map[string]any{"driver": "virtio-rng-pci", "id": "rng", "bus": "port1"}))
	try(t, conn.DeviceDel(ctx, "rng")) // no guest runs that could let go of it
	if err := conn.DeviceDel(ctx, "nobody"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a device that is not there: %v", err)
	}
	if err := conn.Do(ctx, "nonsense", nil, nil); !fault.Is(err, fault.Incompatible) {
		t.Errorf("nonsense: %v", err)
	}
	try(t, conn.Quit(ctx))
	<-conn.Done()
}

func TestSchemaAnswersByName(t *testing.T) {
	schema, err := start(t, "-machine", "none").dial(t).Schema(within(t))
	try(t, err)
	for what, is := range map[string]bool{
		"command":                schema.HasCommand("query-status") && !schema.HasCommand("STOP") && !schema.HasCommand("nonsense"),
		"event":                  schema.HasEvent("STOP") && !schema.HasEvent("query-status"),
		"argument":               schema.HasArgument("migrate", "uri") && !schema.HasArgument("migrate", "nonsense"),
		"argument of nothing":    !schema.HasArgument("nonsense") && !schema.HasArgument("nonsense", "uri"),
		"argument of a variant":  schema.HasArgument("netdev_add", "stream", "addr") && !schema.HasArgument("netdev_add", "user", "addr"),
		"nested argument":        schema.HasArgument("migrate-set-capabilities", "capabilities", "capability", "events"),
		"value of an enum":       slices.Contains(schema.ArgumentValues("migrate-set-capabilities", "capabilities", "capability"), "events"),
		"values of nothing":      schema.ArgumentValues("nonsense", "x") == nil,
		"result":                 schema.HasResult("query-status", "running") && !schema.HasResult("query-status", "nonsense"),
		"result within an array": schema.HasResult("query-named-block-nodes", "node-name"),
	} {
		if !is {
			t.Errorf("wrong about: %s", what)
		}
	}
}

func TestMigrationIsFollowedByEvents(t *testing.T) {
	source, target := start(t, "-machine", "q35", "-m", "32M"), start(t, "-machine", "q35", "-m", "32M", "-incoming", "defer")
	a, b, ctx := source.dial(t), target.dial(t), within(t)
	on := map[string]bool{"events": true, "return-path": true, "pause-before-switchover": true}
	for _, conn := range []*qmp.Conn{a, b} {
		try(t, conn.SetMigrationCapabilities(ctx, on))
		all, err := conn.MigrationCapabilities(ctx)
		if try(t, err); !all["events"] || !all["pause-before-switchover"] || all["multifd"] {
			t.Errorf("capabilities %v", all)
		}
	}
	if err := a.SetMigrationCapabilities(ctx, map[string]bool{"nonsense": true}); err == nil {
		t.Error("nonsense is possible")
	}
	m, err := a.Migration(ctx)
	if try(t, err); m.Status != "" && m.Status != qmp.MigrationNone {
		t.Errorf("before the first: %+v", m)
	}
	try(t, a.SetMigrationParameters(ctx, qmp.MigrationParameters{BandwidthMax: inventory.BytesPerSecond(inventory.GiB), DowntimeMax: 123 * time.Millisecond}))
	p, err := a.MigrationParameters(ctx)
	if try(t, err); p["downtime-limit"] != 123.0 || p["max-bandwidth"] != float64(inventory.GiB) {
		t.Errorf("parameters %v", p)
	}

	fromA, fromB := a.Subscribe(qmp.EventMigration), b.Subscribe()
	address := "unix:" + filepath.Join(source.dir, "stream.sock")
	try(t, b.MigrateIncoming(ctx, address, false))
	try(t, a.Migrate(ctx, address))
	until(t, fromA, qmp.MigrationPreSwitchover)
	try(t, a.MigrateContinue(ctx))
	until(t, fromA, qmp.MigrationCompleted)
	until(t, fromB, qmp.MigrationCompleted)
	m, err = a.Migration(ctx)
	try(t, err)
	if m.Status != qmp.MigrationCompleted || m.RAM.Total < 32*inventory.MiB || m.RAM.Rounds < 2 || m.RAM.PageSize != 4*inventory.KiB {
		t.Errorf("%+v", m)
	}
	s, err := a.Status(ctx)
	// The state follows the event by a moment, and no event tells when.
	if try(t, err); s.Running || (s.State != qmp.StatePostMigrate && s.State != qmp.StateFinishMigrate) {
		t.Errorf("the source is %s", s.State)
	}
}

func until(t *testing.T, events *qmp.Events, want qmp.MigrationStatus) {
	t.Helper()
	for {
		switch got := next(t, events, qmp.EventMigration).Migration(); {
		case got == want:
			return
		case got.Ended():
			t.Fatalf("%s while waiting for %s", got, want)
		}
	}
}

func TestMigrationIsCanceledAndGoesToAFile(t *testing.T) {
	q := start(t, "-machine", "q35", "-m", "64M")
	conn, ctx := q.dial(t), within(t)
	try(t, conn.SetMigrationCapabilities(ctx, map[string]bool{"events": true}))
	events := conn.Subscribe(qmp.EventMigration)
	// Nobody listens there: QEMU tells at once or by an event, by its version.
	if err := conn.Migrate(ctx, "unix:"+filepath.Join(q.dir, "nowhere")); err == nil {
		until(t, events, qmp.MigrationFailed)
	}

	// Nobody reads from the other end, so the migration cannot end by itself. (It must be a socket: a write to a full pipe is
	// not ended by migrate_cancel, as QEMU cannot shut a pipe down.)
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	try(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	try(t, conn.GetFD(ctx, "stream", theirs))
	try(t, theirs.Close())
	try(t, conn.Migrate(ctx, "fd:stream"))
	until(t, events, qmp.MigrationActive)
	try(t, conn.MigrateCancel(ctx))
	until(t, events, qmp.MigrationCancelled)

	path := filepath.Join(q.dir, "memory")
	file, err := os.Create(path)
	try(t, err)
	try(t, conn.GetFD(ctx, "file", file))
	try(t, file.Close())
	try(t, conn.Migrate(ctx, "fd:file"))
	until(t, events, qmp.MigrationCompleted)
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestTargetSaysWhyAStreamWasBad(t *testing.T) {
	q := start(t, "-machine", "q35", "-m", "32M", "-incoming", "defer")
	conn, ctx := q.dial(t), within(t)
	schema, err := conn.Schema(ctx)
	try(t, err)
	if !schema.HasArgument("migrate-incoming", "exit-on-error") {
		t.Skip("this QEMU exits instead")
	}
	try(t, conn.SetMigrationCapabilities(ctx, map[string]bool{"events": true}))
	events := conn.Subscribe(qmp.EventMigration)
	path := filepath.Join(q.dir, "stream.sock")
	try(t, conn.MigrateIncoming(ctx, "unix:"+path, true))
	stream, err := net.Dial("unix", path)
	try(t, err)
	_, err = fmt.Fprintf(stream, "%s", bytes.Repeat([]byte("no stream"), 100))
	try(t, err)
	try(t, stream.Close())
	for next(t, events, qmp.EventMigration).Migration() != qmp.MigrationFailed {
	}
	m, err := conn.Migration(ctx)
	if try(t, err); m.Error == "" {
		t.Errorf("no reason: %+v", m)
	}
	t.Log(m.Error)
}
