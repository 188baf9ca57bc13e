package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/test/lab"
)

// The goals of one host with many VMs.
const (
	manyStartGoal = 60.0 // s, from the first command to the last answer
	manyIdleGoal  = 2.0  // percent of a core that the agent takes while nothing happens
	manyListGoal  = 50.0 // ms, the 99th percentile of vm ls
)

// Bounds and sizes of the measurement.
const (
	manyAtOnce = 4 // commands in parallel, as with xargs -P 4
	manyCalls  = 300
	manyIdle   = 30 * time.Second
	manySettle = 10 * time.Second // after the last start, before the idle host is looked at
	manyMemory = "16M"
	manyDisk   = "16M"
)

// Many is what one host does with many VMs.
type Many struct {
	Schema  int     `json:"schema"`
	Machine Machine `json:"machine"`
	VMs     int     `json:"vms"`
	Guest   string  `json:"guest"`
	Runs    []Run   `json:"runs"`
	Goals   []Goal  `json:"goals"`
}

// Run is one pass over all of it, from a new host on.
type Run struct {
	Create    float64            `json:"create_s"`
	Start     float64            `json:"start_s"`      // all, the commands' own starts included
	StartEach []float64          `json:"start_ms"`     // each command
	Idle      map[string]float64 `json:"idle_percent"` // of a core, by role; "qemu": all of them together
	ListCLI   []float64          `json:"vm_ls_ms"`     // the command, its own start included
	ListAPI   []float64          `json:"list_vms_ms"`  // the API call that it makes
	Resident  map[string]float64 `json:"resident_mib"` // by role; "qemu": of one, the median
	Stop      float64            `json:"stop_s"`
	LoadStart float64            `json:"load_before"`
	LoadIdle  float64            `json:"load_idle"` // of others too: what runs beside
}

// manyGuests are the guests that may be started: one that does nothing at all, and one that prints ten lines a second.
var manyGuests = map[string]func() []byte{
	"idle":      tiny.Idle,
	"heartbeat": func() []byte { return tiny.Heartbeat(tiny.Options{}) },
}

// measureMany runs the passes, each on a new host.
func measureMany(ctx context.Context, o options) (*Many, error) {
	rom, known := manyGuests[o.guest]
	if !known {
		return nil, fmt.Errorf("-guest %q: idle or heartbeat", o.guest)
	}
	cache, err := guest.Cache()
	if err != nil {
		return nil, err
	}
	probes := filepath.Join(cache, "probes")
	m := &Many{Schema: schema, VMs: o.many, Guest: o.guest}
	for n := range o.pairs {
		r, err := manyOnce(ctx, o, probes, rom())
		if err != nil {
			return nil, err
		}
		m.Runs = append(m.Runs, r)
		say("run %d: %s", n+1, r)
	}
	abilities, err := manyAbilities(ctx, probes)
	if err != nil {
		return nil, err
	}
	m.Machine = machine(ctx, o.binary, abilities)
	return m, nil
}

func manyAbilities(ctx context.Context, probes string) (qemu.Abilities, error) {
	config := qemu.ProbeConfig{CacheDir: probes}
	if os.Geteuid() == 0 {
		user, err := qemu.LookupUser(qemu.DefaultUser)
		if err != nil {
			return qemu.Abilities{}, err
		}
		config.User = user
	}
	return qemu.Probe(ctx, config)
}

// manyOnce makes a host, fills it, watches it, and empties it.
func manyOnce(ctx context.Context, o options, probes string, rom []byte) (r Run, err error) {
	wanted := lab.Options{Binary: o.binary, Hosts: 1, Cache: probes}
	if o.log != "" {
		log, err := os.OpenFile(o.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, log.Close()) }()
		wanted.Log = log
	}
	cluster, err := lab.Start(ctx, wanted)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	h := cluster.Hosts[0]
	if err := os.WriteFile(filepath.Join(cluster.Datastore, "tiny.rom"), rom, 0o644); err != nil {
		return r, err
	}
	if _, err := h.Godwit(ctx, "network", "create", "lan", "--subnet", "10.99.0.0/16"); err != nil {
		return r, err
	}
	r.LoadStart = load()
	if r.Create, _, err = manyDo(ctx, h, o.many, func(name string) []string {
		return []string{
			"vm", "create", name, "--memory", manyMemory, "--firmware", "tiny.rom", "--disk", "size=" + manyDisk, "--nic", "lan",
		}
	}); err != nil {
		return r, err
	}
	if r.Start, r.StartEach, err = manyDo(ctx, h, o.many, func(name string) []string { return []string{"vm", "start", name} }); err != nil {
		return r, err
	}
	pids, err := manyRunning(ctx, h, o.many)
	if err != nil {
		return r, err
	}
	if err := r.watch(ctx, h, pids); err != nil {
		return r, err
	}
	if err := r.list(ctx, h, o.many); err != nil {
		return r, err
	}
	if _, err := manyRunning(ctx, h, o.many); err != nil { // none of them ended meanwhile
		return r, err
	}
	r.Stop, _, err = manyDo(ctx, h, o.many, func(name string) []string { return []string{"vm", "stop", name, "--force"} })
	return r, err
}

// manyDo runs a command for each VM, manyAtOnce at a time, and returns the seconds of all and the milliseconds of each.
func manyDo(ctx context.Context, h *lab.Host, vms int, args func(name string) []string) (all float64, each []float64, err error) {
	each = make([]float64, vms)
	clock := startClock()
	workers, ctx := errgroup.WithContext(ctx)
	workers.SetLimit(manyAtOnce)
	for i := range vms {
		workers.Go(func() error {
			own := startClock()
			_, err := h.Godwit(ctx, args(fmt.Sprintf("tiny-%03d", i))...)
			each[i] = own.now()
			return err
		})
	}
	err = workers.Wait()
	return clock.now() / 1e3, each, err
}

// manyRunning demands that all VMs run, each in a process of its own, and returns these.
func manyRunning(ctx context.Context, h *lab.Host, vms int) ([]int, error) {
	list := &godwitv1.ListVMsResponse{}
	if err := h.Read(ctx, list, "vm", "ls"); err != nil {
		return nil, err
	}
	var pids []int
	for _, vm := range list.GetVms() {
		if state := vm.GetStatus().GetState(); state != "running" {
			return nil, fmt.Errorf("%s is %s: %s", vm.GetSpec().GetName(), state, vm.GetStatus().GetDetail())
		}
		pids = append(pids, int(vm.GetStatus().GetPid()))
	}
	slices.Sort(pids)
	if n := len(slices.Compact(pids)); n != vms {
		return nil, fmt.Errorf("%d VMs run in %d processes, not %d", len(list.GetVms()), n, vms)
	}
	return pids, nil
}

// watch measures what the host's processes take while nothing is asked of them.
func (r *Run) watch(ctx context.Context, h *lab.Host, guests []int) error {
	if err := wait(ctx, manySettle); err != nil {
		return err
	}
	roles := map[string][]int{"qemu": guests}
	for _, role := range []string{"agent", "switch", "store"} {
		pid, err := h.PID(ctx, role)
		if err != nil {
			return err
		}
		roles[role] = []int{pid}
	}
	before, clock := map[string]time.Duration{}, startClock()
	for role, pids := range roles {
		before[role] = cpuOf(pids)
	}
	if err := wait(ctx, manyIdle); err != nil {
		return err
	}
	r.Idle, r.Resident, r.LoadIdle = map[string]float64{}, map[string]float64{}, load()
	for role, pids := range roles {
		r.Idle[role] = milliseconds(cpuOf(pids)-before[role]) / clock.now() * 100
		var resident []float64
		for _, pid := range pids {
			proc, err := procfs.NewProc(pid)
			if err != nil {
				return fmt.Errorf("%s ended while nothing was asked of it: %w", role, err)
			}
			stat, err := proc.Stat()
			if err != nil {
				return err
			}
			resident = append(resident, float64(stat.ResidentMemory())/(1<<20))
		}
		r.Resident[role] = spread(resident).Median
	}
	return nil
}

// list measures vm ls, as a command and as the call that it makes.
func (r *Run) list(ctx context.Context, h *lab.Host, vms int) error {
	for range manyCalls {
		clock := startClock()
		out, err := h.Godwit(ctx, "vm", "ls")
		if err != nil {
			return err
		}
		r.ListCLI = append(r.ListCLI, clock.now())
		if n := strings.Count(string(out), "\n"); n != vms+1 {
			return fmt.Errorf("vm ls prints %d lines for %d VMs", n, vms)
		}
	}
	web := local(h.Socket)
	defer web.CloseIdleConnections()
	client := godwitv1connect.NewVMServiceClient(web, "http://agent")
	for range manyCalls {
		clock := startClock()
		resp, err := client.ListVMs(ctx, connect.NewRequest(&godwitv1.ListVMsRequest{}))
		if err != nil {
			return err
		}
		r.ListAPI = append(r.ListAPI, clock.now())
		if n := len(resp.Msg.GetVms()); n != vms {
			return fmt.Errorf("the list has %d VMs, not %d", n, vms)
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// percentile returns the smallest value that at least p of 100 values do not exceed, 0 of none.
func percentile(values []float64, p int) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	return v[max(0, (len(v)*p+99)/100-1)]
}

// String is the run in one line.
func (r Run) String() string {
	return fmt.Sprintf("create %.1f s, start %.1f s (each %.0f ms, p99 %.0f), idle agent %.2f %% switch %.2f %% store %.2f %% qemu %.1f %%, "+
		"vm ls p50 %.1f p99 %.1f ms, call p50 %.2f p99 %.2f ms, agent %.1f MiB switch %.1f store %.1f qemu %.1f, stop %.1f s, load %.1f %.1f",
		r.Create, r.Start, percentile(r.StartEach, 50), percentile(r.StartEach, 99), r.Idle["agent"], r.Idle["switch"], r.Idle["store"], r.Idle["qemu"],
		percentile(r.ListCLI, 50), percentile(r.ListCLI, 99), percentile(r.ListAPI, 50), percentile(r.ListAPI, 99),
		r.Resident["agent"], r.Resident["switch"], r.Resident["store"], r.Resident["qemu"], r.Stop, r.LoadStart, r.LoadIdle)
}

// over returns the spread of a figure over the runs.
func (m *Many) over(f func(Run) float64) Spread {
	var values []float64
	for _, r := range m.Runs {
		values = append(values, f(r))
	}
	return spread(values)
}

// judge fills in the goals by the runs' medians.
func (m *Many) judge() {
	m.Goals = nil
	for _, g := range []struct {
		name, unit string
		want       float64
		of         func(Run) float64
	}{
		{"start all", "s", manyStartGoal, func(r Run) float64 { return r.Start }},
		{"idle agent", "% of a core", manyIdleGoal, func(r Run) float64 { return r.Idle["agent"] }},
		{"vm ls, the command, p99", "ms", manyListGoal, func(r Run) float64 { return percentile(r.ListCLI, 99) }},
		{"vm ls, the call, p99", "ms", manyListGoal, func(r Run) float64 { return percentile(r.ListAPI, 99) }},
	} {
		got := m.over(g.of).Median
		m.Goals = append(m.Goals, Goal{g.name, g.want, got, g.unit, got <= g.want})
	}
}

// table is the report for people, in Markdown.
func (m *Many) table() string {
	var b strings.Builder
	w := bufio.NewWriter(&b)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // a strings.Builder takes all
	c := m.Machine
	line("Measured %s at %s on %d CPUs (%s), %s %s %s, QEMU %s with %s, %s, nice %d.", c.Date, c.Commit, c.CPUs, c.CPU, c.OS, c.Arch, c.Kernel, c.QEMU,
		c.Accelerator, c.Go, c.Nice)
	line("%d VMs of %s on one host, guest %s, each with a disk and a network card; %d commands at a time, %d calls of vm ls, %.0f s of idleness.\n",
		m.VMs, manyMemory, m.Guest, manyAtOnce, manyCalls, manyIdle.Seconds())
	line("Medians of %d runs, each from a new host on, with lowest and highest; percentiles of a run's calls.\n", len(m.Runs))
	line("| figure | median [lowest highest] |\n|---|---|")
	row := func(name, format string, f func(Run) float64) { line("| %s | %s |", name, m.over(f).text(format)) }
	row("create all, s", "%.1f", func(r Run) float64 { return r.Create })
	row("start all, s", "%.1f", func(r Run) float64 { return r.Start })
	row("one vm start, p50, ms", "%.0f", func(r Run) float64 { return percentile(r.StartEach, 50) })
	row("one vm start, p99, ms", "%.0f", func(r Run) float64 { return percentile(r.StartEach, 99) })
	row("stop all, s", "%.1f", func(r Run) float64 { return r.Stop })
	for _, role := range []string{"agent", "switch", "store", "qemu"} {
		name := "idle " + role
		if role == "qemu" {
			name = "idle qemu, all together"
		}
		row(name+", % of a core", "%.2f", func(r Run) float64 { return r.Idle[role] })
	}
	for _, p := range []int{50, 99} {
		row(fmt.Sprintf("vm ls, the command, p%d, ms", p), "%.1f", func(r Run) float64 { return percentile(r.ListCLI, p) })
		row(fmt.Sprintf("vm ls, the call, p%d, ms", p), "%.2f", func(r Run) float64 { return percentile(r.ListAPI, p) })
	}
	for _, role := range []string{"agent", "switch", "store", "qemu"} {
		row("resident "+role+", MiB", "%.1f", func(r Run) float64 { return r.Resident[role] })
	}
	row("load of the machine before", "%.1f", func(r Run) float64 { return r.LoadStart })
	row("load of the machine, idle host", "%.1f", func(r Run) float64 { return r.LoadIdle })
	line("\n| goal | at most | measured | |\n|---|---|---|---|")
	for _, g := range m.Goals {
		met := "missed"
		if g.Met {
			met = "met"
		}
		line("| %s | %g %s | %.2f %s | %s |", g.Name, g.Want, g.Unit, g.Got, g.Unit, met)
	}
	_ = w.Flush() // as above
	return b.String()
}

// write judges the goals, prints the table, and puts table and JSON into the folder.
func (m *Many) write(dir, name string) error {
	m.judge()
	fmt.Println(m.table())
	return save(dir, name, m, map[string]string{".md": m.table()})
}
