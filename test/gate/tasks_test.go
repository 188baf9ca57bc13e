package gate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// office is a cluster of three hosts, with one tiny VM on host-1 that never hears a request to shut down.
type office struct {
	*lab.Cluster

	vm string // its id
}

const deafVM = "deaf"

// The story: whatever is asked of a host is a task. Every host shows it, every host can end it, nobody has to stay for it; what happens is
// told as events; and a call that is repeated with its key is done once, whatever dies meanwhile.
func TestTasks(t *testing.T) {
	t.Parallel()
	o := &office{Cluster: startCluster(t, lab.Options{Hosts: 3})}
	slow := tiny.Options{Pages: 1024, Fill: 8 << 10, Rate: 64} // 32 MiB to send
	if err := os.WriteFile(filepath.Join(o.Datastore, "tiny.rom"), tiny.Heartbeat(slow), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("a repeated create makes one VM", o.createTwice)
	t.Run("events are followed as they happen", o.follow)
	t.Run("any host shows and cancels a task", o.cancelFromElsewhere)
	t.Run("a task outlives its caller", o.interrupt)
	t.Run("a migration is a task", o.cancelMigration)
	t.Run("a task does not outlive its agent", o.killAgent)
	t.Run("a create whose agent is killed makes one VM", o.killDuringCreate)
	t.Run("the store comes back", o.storeAway)
}

func (o *office) create(name string, more ...string) []string {
	return append(words("vm create "+name+" --memory 48M --firmware tiny.rom --disk size=16M --json"), more...)
}

// createTwice asks two hosts at the same time, with one key.
func (o *office) createTwice(t *testing.T) {
	command := o.create(deafVM, "--request", "the-first")
	made := make([]string, 4)
	errs := make([]error, len(made))
	var all sync.WaitGroup
	for i := range made {
		all.Go(func() {
			vm := &godwitv1.VM{}
			out, err := o.Hosts[i%2].Godwit(step(t), command...)
			errs[i] = errors.Join(err, protojson.Unmarshal(out, vm))
			made[i] = vm.GetId()
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if o.vm = made[0]; o.vm == "" || slices.ContainsFunc(made, func(id string) bool { return id != o.vm }) {
		t.Errorf("one key made the VMs %v", made)
	}
	again := &godwitv1.VM{}
	if err := o.Hosts[2].Read(step(t), again, o.create(deafVM, "--cpus", "2", "--request", "the-first")...); err == nil {
		t.Error("another message under the same key was taken")
	} else if lab.ExitCode(err) != 4 || !strings.Contains(err.Error(), "was used for another call") {
		t.Errorf("another message under the same key: %v", err)
	}
	if out, err := o.Hosts[2].Godwit(step(t), command...); err != nil || protojson.Unmarshal(out, again) != nil || again.GetId() != o.vm {
		t.Errorf("a repeat after success: %v: %s", err, out)
	}
	if _, err := o.Hosts[2].Godwit(step(t), o.create(deafVM)...); lab.ExitCode(err) != 4 {
		t.Errorf("a create without the key: %v", err)
	}
	o.oneVM(t, deafVM)
	if owner := again.GetRun().GetOwner(); owner != "host-1" { // where the rest of the story plays
		if _, err := o.Hosts[0].Godwit(step(t), "vm", "destroy", deafVM, "--delete-disks"); err != nil {
			t.Fatal(err)
		}
		out, err := o.Hosts[0].Godwit(step(t), o.create(deafVM)...)
		if err != nil || protojson.Unmarshal(out, again) != nil {
			t.Fatal(err)
		}
		o.vm = again.GetId()
	}
}

// oneVM demands one VM of the name with one disk.
func (o *office) oneVM(t *testing.T, name string) {
	t.Helper()
	all := &godwitv1.ListVMsResponse{}
	if err := o.Hosts[0].Read(step(t), all, "vm", "ls"); err != nil {
		t.Fatal(err)
	}
	vms := slices.DeleteFunc(all.GetVms(), func(vm *godwitv1.VM) bool { return vm.GetSpec().GetName() != name })
	if len(vms) != 1 || len(vms[0].GetSpec().GetDisks()) != 1 {
		t.Fatalf("there are %d VMs of the name %s: %v", len(vms), name, vms)
	}
	images, err := filepath.Glob(filepath.Join(o.Datastore, name+"-*"))
	if err != nil || len(images) != 1 || filepath.Base(images[0]) != vms[0].GetSpec().GetDisks()[0].GetFile().GetPath() {
		t.Errorf("the VM has disks %v and the datastore images %v (%v)", vms[0].GetSpec().GetDisks(), images, err)
	}
}

// tasks returns the VM's tasks as the host shows them, newest first.
func (o *office) tasks(t *testing.T, h *lab.Host, more ...string) []*godwitv1.Task {
	t.Helper()
	all := &godwitv1.ListTasksResponse{}
	if err := h.Read(step(t), all, append(words("task ls --object "+deafVM), more...)...); err != nil {
		t.Fatal(err)
	}
	return all.GetTasks()
}

// running waits until the host shows an active task of the kind, and returns it.
func (o *office) running(t *testing.T, h *lab.Host, kind string) (found *godwitv1.Task) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		for _, each := range o.tasks(t, h, "--active") {
			if each.GetSpec().GetKind() == kind && each.GetStatus().GetState() == inventory.TaskRunning.String() {
				found = each
				return nil
			}
		}
		return fmt.Errorf("%s shows no %s at work", h.Name, kind)
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// ended waits until the host shows the task in a final state, and returns it.
func (o *office) ended(t *testing.T, h *lab.Host, id string) *godwitv1.Task {
	t.Helper()
	found := &godwitv1.Task{}
	if err := lab.Until(t.Context(), stepMax, func() error {
		if err := h.Read(t.Context(), found, "task", "info", id); err != nil {
			return err
		}
		if found.GetStatus().GetEnded() == nil {
			return fmt.Errorf("%s is %s", id, found.GetStatus().GetState())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// follow starts the VM under the eyes of another host's event ls --follow.
func (o *office) follow(t *testing.T) {
	ctx, done := context.WithCancel(step(t))
	defer done()
	cmd := o.Hosts[1].Interactive(ctx, "event", "ls", "--follow", "--json", "--object", deafVM)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := make(chan *godwitv1.Event, 64)
	go func() { // ends with the process
		defer close(seen)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			e := &godwitv1.Event{}
			if protojson.Unmarshal(lines.Bytes(), e) == nil {
				seen <- e
			}
		}
	}()
	for e := range seen { // the past: it is joined
		if e.GetKind() == "task.succeeded" {
			break
		}
	}
	if _, err := o.Hosts[2].Godwit(step(t), "vm", "start", deafVM); err != nil {
		t.Fatal(err)
	}
	var started *godwitv1.Event
	for e := range seen {
		if e.GetKind() == "vm.started" {
			started = e
			break
		}
	}
	done()
	_ = cmd.Wait() // it was ended
	tasks := o.tasks(t, o.Hosts[2])
	if started.GetTask() == "" || tasks[0].GetId() != started.GetTask() || tasks[0].GetSpec().GetKind() != "vm.start" || started.GetHost() != "host-1" {
		t.Errorf("the event %v does not belong to the task %v", started, tasks[0])
	}
	if first := o.tasks(t, o.Hosts[0]); len(first) != len(tasks) || first[0].GetId() != tasks[0].GetId() {
		t.Errorf("host-1 shows %d tasks, host-3 %d", len(first), len(tasks))
	}
}

// stop asks the deaf VM to shut down and returns the command while it waits.
func (o *office) stop(t *testing.T, h *lab.Host) (wait func() (code int, said string), interrupt func()) {
	t.Helper()
	cmd := h.Interactive(step(t), "vm", "stop", deafVM, "--grace", "10m")
	said := &transcript{changed: make(chan struct{}, 1)}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait = func() (int, string) { return lab.ExitCode(cmd.Wait()), said.String() }
	return wait, func() { _ = cmd.Process.Signal(syscall.SIGINT) } // wait tells
}

// cancelFromElsewhere ends on host-3 what host-2 asked host-1 for.
func (o *office) cancelFromElsewhere(t *testing.T) {
	wait, _ := o.stop(t, o.Hosts[1])
	task := o.running(t, o.Hosts[2], "vm.stop")
	if _, err := o.Hosts[2].Godwit(step(t), "task", "cancel", task.GetId()); err != nil {
		t.Fatal(err)
	}
	if code, said := wait(); code != 130 || !strings.Contains(said, task.GetId()+" was canceled") {
		t.Errorf("who asked for it got exit code %d: %s", code, said)
	}
	for _, h := range o.Hosts {
		if state := o.ended(t, h, task.GetId()).GetStatus().GetState(); state != inventory.TaskCanceled.String() {
			t.Errorf("%s shows it as %s", h.Name, state)
		}
	}
	_, err := o.Hosts[1].Godwit(step(t), "task", "cancel", task.GetId())
	if lab.ExitCode(err) != 4 || !strings.Contains(err.Error(), "it is over: canceled") {
		t.Errorf("canceling it again: %v", err)
	}
	o.runs(t)
}

// runs demands that the VM runs on host-1.
func (o *office) runs(t *testing.T) {
	t.Helper()
	if vm, err := o.Hosts[1].VM(step(t), deafVM); err != nil || vm.GetStatus().GetState() != inventory.Running.String() || vm.GetRun().GetOwner() != "host-1" {
		t.Errorf("the VM: %v, %v", vm, err)
	}
}

// interrupt goes away from a task.
func (o *office) interrupt(t *testing.T) {
	wait, interrupt := o.stop(t, o.Hosts[1])
	task := o.running(t, o.Hosts[2], "vm.stop")
	interrupt()
	code, said := wait()
	if code != 130 || !strings.Contains(said, "it goes on as "+task.GetId()+": end it with godwit task cancel "+task.GetId()) {
		t.Errorf("exit code %d: %s", code, said)
	}
	if still := o.running(t, o.Hosts[2], "vm.stop"); still.GetId() != task.GetId() {
		t.Errorf("%s became %s", task.GetId(), still.GetId())
	}
	watch := o.Hosts[2].Interactive(step(t), "task", "watch", task.GetId())
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Hosts[1].Godwit(step(t), "task", "cancel", task.GetId()); err != nil {
		t.Fatal(err)
	}
	if code := lab.ExitCode(watch.Wait()); code != 130 {
		t.Errorf("who watched got exit code %d", code)
	}
	o.runs(t)
}

// cancelMigration ends a migration by its task.
func (o *office) cancelMigration(t *testing.T) {
	id := begin(t, deafVM, o.Hosts[0], o.Hosts[1], "--bandwidth", "1M")
	task := o.running(t, o.Hosts[2], "vm.migrate")
	if err := lab.Until(t.Context(), stepMax, func() error {
		now := &godwitv1.Task{}
		if err := o.Hosts[2].Read(t.Context(), now, "task", "info", task.GetId()); err != nil {
			return err
		}
		if s := now.GetStatus(); s.GetResult() != id || s.GetDone() <= 0 || s.GetTotal() <= s.GetDone() {
			return fmt.Errorf("the task of %s shows no progress: %v", id, s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Hosts[2].Godwit(step(t), "task", "cancel", task.GetId()); err != nil {
		t.Fatal(err)
	}
	m := &godwitv1.Migration{}
	if err := o.Hosts[1].Read(step(t), m, "migration", "show", id); err != nil || m.GetStatus().GetPhase() != inventory.Canceled.String() {
		t.Errorf("the migration is %s (%v)", m.GetStatus().GetPhase(), err)
	}
	if state := o.ended(t, o.Hosts[1], task.GetId()).GetStatus().GetState(); state != inventory.TaskCanceled.String() {
		t.Errorf("its task is %s", state)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		vm, err := o.Hosts[1].VM(t.Context(), deafVM)
		if err == nil && vm.GetStatus().GetState() != inventory.Running.String() {
			err = fmt.Errorf("the VM is %s", vm.GetStatus().GetState())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// killAgent kills the agent that does the work.
func (o *office) killAgent(t *testing.T) {
	wait, _ := o.stop(t, o.Hosts[1])
	task := o.running(t, o.Hosts[2], "vm.stop")
	o.stored(t, task.GetId()) // what is in no memory any more must be in the store
	restart{Host: o.Hosts[0]}.replace(t, syscall.SIGKILL, "agent")
	if code, said := wait(); code != 6 {
		t.Errorf("who asked for it got exit code %d: %s", code, said)
	}
	s := o.ended(t, o.Hosts[2], task.GetId()).GetStatus()
	if s.GetState() != inventory.TaskFailed.String() || !strings.Contains(s.GetReason(), "the agent was restarted") {
		t.Errorf("the task ended as %s: %s", s.GetState(), s.GetReason())
	}
	o.runs(t)
}

// stored waits until the store has the task.
func (o *office) stored(t *testing.T, id string) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		if !slices.ContainsFunc(o.dump(t), func(key string) bool { return strings.HasPrefix(key, "/godwit/task/"+id) }) {
			return errors.New(id + " is not in the store")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// dump returns the keys of the store.
func (o *office) dump(t *testing.T) (keys []string) {
	t.Helper()
	text, err := o.Hosts[0].Godwit(step(t), "store", "dump", "--data", o.Hosts[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	var dump struct{ Records []struct{ Key string } }
	if err := json.Unmarshal(text, &dump); err != nil {
		t.Fatal(err)
	}
	for _, r := range dump.Records {
		keys = append(keys, r.Key)
	}
	return keys
}

// killDuringCreate kills the agent at a random moment of a create and repeats the create with its key until it is answered.
func (o *office) killDuringCreate(t *testing.T) {
	h := o.Hosts[1]
	for seed := range uint64(4) {
		name, random := fmt.Sprintf("once-%d", seed), rand.New(rand.NewPCG(seed, 1))
		command := o.create(name, "--host", h.Name, "--request", "key-of-"+name)
		pid, err := h.PID(step(t), "agent")
		if err != nil {
			t.Fatal(err)
		}
		after := time.Duration(10+random.IntN(90)) * time.Millisecond
		var first error
		var all sync.WaitGroup
		all.Go(func() { _, first = h.Godwit(step(t), command...) })
		<-time.After(after)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		if _, err := h.WaitOther(step(t), "agent", pid); err != nil {
			t.Fatal(err)
		}
		t.Logf("killed after %v: the first call got %v", after, first)
		made := map[string]bool{}
		for _, by := range o.Hosts {
			vm := &godwitv1.VM{}
			out, err := by.Godwit(step(t), command...)
			if err = errors.Join(err, protojson.Unmarshal(out, vm)); err != nil {
				t.Fatal(err)
			}
			made[vm.GetId()] = true
		}
		if len(made) != 1 {
			t.Errorf("one key made the VMs %v", made)
		}
		o.oneVM(t, name)
	}
}

// storeAway takes the store away while something happens: it is told when the store is back.
func (o *office) storeAway(t *testing.T) {
	pid, err := o.Hosts[0].PID(step(t), "store")
	if err != nil {
		t.Fatal(err)
	}
	qemus := o.Hosts[0].QEMUs(o.vm)
	if len(qemus) != 1 {
		t.Fatalf("the VM has the processes %v", qemus)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	err = syscall.Kill(qemus[0], syscall.SIGKILL)
	gone := lab.Until(step(t), stepMax, func() error {
		if left := o.Hosts[0].QEMUs(o.vm); len(left) > 0 {
			return fmt.Errorf("processes %v", left)
		}
		return nil
	})
	if err := errors.Join(err, gone, syscall.Kill(pid, syscall.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		out, err := o.Hosts[2].Godwit(t.Context(), "event", "ls", "--json", "--object", o.vm, "--since", "1m")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			e := &godwitv1.Event{}
			if err := protojson.Unmarshal([]byte(line), e); err != nil {
				return err
			}
			if e.GetKind() == "vm.crashed" && e.GetTime().AsTime().After(died) {
				return nil
			}
		}
		return errors.New("the crash is not told")
	}); err != nil {
		t.Error(err)
	}
}
