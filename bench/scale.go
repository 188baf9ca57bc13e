package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/test/lab"
)

// The goals of a leader with many hosts.
const (
	scaleMemoryGoal  = 2048.0 // MiB, agent and store of the leader's host together
	scaleReadGoal    = 200.0  // ms, the 99th percentile of reading the whole inventory
	scaleTrafficGoal = 1024.0 // bytes a second and host, to and from the store
)

// Bounds of the measurement.
const (
	scaleVMsEach  = 10
	scaleAtOnce   = 32 // hosts that come up at a time
	scaleQuiet    = 60 * time.Second
	scaleSpread   = 60 * time.Second // over which the hosts' watches begin, each with a list of what there is
	scaleSettle   = 75 * time.Second
	scaleReads    = 100
	scaleChurn    = 20 // changes of a VM's state a second, in the second half
	scaleHostRAM  = inventory.Bytes(256 << 30)
	scaleHostCPUs = 32
)

// Scale is what one leader does with many hosts. The hosts are real to the store and the leader, each with a connection, an
// epoch, renewals and the watches of an agent; they have no QEMU, no switch and no API of their own.
type Scale struct {
	Schema  int                `json:"schema"`
	Machine Machine            `json:"machine"`
	Hosts   int                `json:"hosts"`
	VMs     int                `json:"vms"`
	Up      float64            `json:"up_s"` // all hosts and VMs in the inventory
	Quiet   ScaleHalf          `json:"quiet"`
	Churn   ScaleHalf          `json:"churn"` // with scaleChurn changes of state a second
	Missed  int64              `json:"renewals_missed"`
	Sent    int64              `json:"renewals"`
	Rate    map[string]float64 `json:"renewal_ms"` // p50, p99, max
	Goals   []Goal             `json:"goals"`
}

// ScaleHalf is one part of the measurement.
type ScaleHalf struct {
	CPU      map[string]float64 `json:"cpu_percent"` // of a core, by role of the leader's host; "hosts": all simulated ones together
	Resident map[string]float64 `json:"resident_mib"`
	ListVMs  []float64          `json:"list_vms_ms"`
	ListHost []float64          `json:"list_hosts_ms"`
	Traffic  float64            `json:"bytes_per_second_and_host"`
	Load     float64            `json:"load"`
}

// measureScale makes a leader, gives it hosts and VMs, and watches it quiet and busy.
func measureScale(ctx context.Context, o options) (s *Scale, err error) {
	cluster, err := lab.Start(ctx, lab.Options{Binary: o.binary, Hosts: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	h := cluster.Hosts[0]
	s = &Scale{Schema: schema, Hosts: o.scale, VMs: o.scale * scaleVMsEach, Rate: map[string]float64{}}
	f, err := newFleet(ctx, h, o.scale)
	if err != nil {
		return nil, err
	}
	clock := startClock()
	within, stop := context.WithCancel(ctx)
	all, within := errgroup.WithContext(within)
	defer func() { stop(); err = errors.Join(err, all.Wait(), f.close()) }()
	if err := f.up(within, all); err != nil {
		return nil, err
	}
	s.Up = clock.now() / 1e3
	say("%d hosts with %d VMs after %.1f s", s.Hosts, s.VMs, s.Up)
	for _, half := range []struct {
		name  string
		into  *ScaleHalf
		churn bool
	}{{"quiet", &s.Quiet, false}, {"churn", &s.Churn, true}} {
		f.churn.Store(half.churn)
		if err := wait(ctx, scaleSettle); err != nil {
			return nil, err
		}
		if err := half.into.watch(ctx, h, f); err != nil {
			return nil, err
		}
		say("%s: %s", half.name, half.into)
	}
	s.Sent, s.Missed = f.sent.Load(), f.missed.Load()
	times := f.times()
	s.Rate["p50"], s.Rate["p99"], s.Rate["max"] = percentile(times, 50), percentile(times, 99), percentile(times, 100)
	abilities, err := manyAbilities(ctx, filepath.Join(cluster.Dir, "cache"))
	if err != nil {
		return nil, err
	}
	s.Machine = machine(ctx, o.binary, abilities)
	return s, nil
}

// watch measures the leader's processes and the traffic, and then how long it takes to read the inventory.
func (half *ScaleHalf) watch(ctx context.Context, h *lab.Host, f *fleet) error {
	roles := map[string][]int{"hosts": {os.Getpid()}}
	for _, role := range []string{"agent", "store"} {
		pid, err := h.PID(ctx, role)
		if err != nil {
			return err
		}
		roles[role] = []int{pid}
	}
	before := map[string]time.Duration{}
	for role, pids := range roles {
		before[role] = cpuOf(pids)
	}
	clock, bytes := startClock(), f.proxy.bytes.Load()
	if err := wait(ctx, scaleQuiet); err != nil {
		return err
	}
	seconds := clock.now() / 1e3
	half.Traffic = float64(f.proxy.bytes.Load()-bytes) / seconds / float64(len(f.hosts))
	half.CPU, half.Resident, half.Load = map[string]float64{}, map[string]float64{}, load()
	for role, pids := range roles {
		half.CPU[role] = (cpuOf(pids) - before[role]).Seconds() / seconds * 100
	}
	web := local(h.Socket)
	defer web.CloseIdleConnections()
	vms, hosts := godwitv1connect.NewVMServiceClient(web, "http://agent"), godwitv1connect.NewHostServiceClient(web, "http://agent")
	for range scaleReads {
		own := startClock()
		list, err := vms.ListVMs(ctx, connect.NewRequest(&godwitv1.ListVMsRequest{}))
		if err != nil {
			return err
		}
		half.ListVMs = append(half.ListVMs, own.now())
		if n := len(list.Msg.GetVms()); n != len(f.hosts)*scaleVMsEach {
			return fmt.Errorf("the list has %d VMs, not %d", n, len(f.hosts)*scaleVMsEach)
		}
	}
	for range scaleReads / 10 {
		own := startClock()
		list, err := hosts.ListHosts(ctx, connect.NewRequest(&godwitv1.ListHostsRequest{}))
		if err != nil {
			return err
		}
		half.ListHost = append(half.ListHost, own.now())
		if n := len(list.Msg.GetHosts()); n != len(f.hosts)+1 {
			return fmt.Errorf("the list has %d hosts, not %d", n, len(f.hosts)+1)
		}
	}
	for role, pids := range roles { // after the reads, which are what takes memory
		proc, err := procfs.NewProc(pids[0])
		if err != nil {
			return fmt.Errorf("%s ended: %w", role, err)
		}
		stat, err := proc.Stat()
		if err != nil {
			return err
		}
		half.Resident[role] = float64(stat.ResidentMemory()) / (1 << 20)
	}
	return nil
}

// String is the half in one line.
func (half ScaleHalf) String() string {
	return fmt.Sprintf("agent %.1f %% store %.1f %% hosts %.1f %% of a core, agent %.1f MiB store %.1f MiB, all VMs p50 %.1f p99 %.1f ms, all hosts p50 %.1f p99 %.1f ms, "+
		"%.0f B/s and host, load %.1f", half.CPU["agent"], half.CPU["store"], half.CPU["hosts"], half.Resident["agent"], half.Resident["store"],
		percentile(half.ListVMs, 50), percentile(half.ListVMs, 99), percentile(half.ListHost, 50), percentile(half.ListHost, 99), half.Traffic, half.Load)
}

// fleet is the simulated hosts.
type fleet struct {
	proxy   *countingProxy
	hosts   []*simHost
	id      *peer.Identity
	came    chan struct{} // closed when all are there
	churn   atomic.Bool
	sent    atomic.Int64
	missed  atomic.Int64
	latency chan float64
	seen    []float64
}

// simHost is one of them, as the store and the leader see it.
type simHost struct {
	id     inventory.HostID
	store  *store.Store
	writer *store.Writer
	vms    []inventory.VMID
}

func newFleet(ctx context.Context, h *lab.Host, n int) (*fleet, error) {
	ca, err := peer.LoadCA(filepath.Join(h.Data, "pki"))
	if err != nil {
		return nil, err
	}
	request, err := peer.NewRequest("sim")
	if err != nil {
		return nil, err
	}
	certificate, err := ca.Sign(request.CSR(), "sim", []string{h.Address})
	if err != nil {
		return nil, err
	}
	id, err := request.Save(filepath.Join(h.Data, "..", "sim"), ca.Certificate(), certificate)
	if err != nil {
		return nil, err
	}
	proxy, err := newCountingProxy(ctx, h.Address+":0", h.Address+":2379")
	if err != nil {
		return nil, err
	}
	f := &fleet{proxy: proxy, id: id, came: make(chan struct{}), latency: make(chan float64, 1<<20)}
	for i := range n {
		f.hosts = append(f.hosts, &simHost{id: inventory.HostID(fmt.Sprintf("sim-%04d", i))})
	}
	return f, nil
}

// up brings all hosts into the cluster. Each renews from its first moment, or the leader would fence it before the last one has come; they begin to
// watch when all are there: a cluster of a thousand hosts grew over months, and its hosts did not all watch each other come. Their lives end
// with ctx.
func (f *fleet) up(ctx context.Context, lives *errgroup.Group) error {
	coming, within := errgroup.WithContext(ctx)
	coming.SetLimit(scaleAtOnce)
	for _, h := range f.hosts {
		coming.Go(func() error {
			err := h.begin(within, f)
			if err == nil {
				lives.Go(func() error { return h.live(ctx, f) })
				err = h.join(within)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", h.id, err)
			}
			return nil
		})
	}
	if err := coming.Wait(); err != nil {
		return err
	}
	close(f.came)
	return nil
}

// begin begins the host's epoch, with its first renewal.
func (h *simHost) begin(ctx context.Context, f *fleet) (err error) {
	if h.store, err = store.Open(ctx, store.Config{Endpoints: []string{"https://" + f.proxy.address}, TLS: f.id.StoreTLS()}); err != nil {
		return err
	}
	if err := h.store.Admit(ctx, h.id); err != nil {
		return err
	}
	epoch, _, err := h.store.NextEpoch(ctx, h.id, "boot-"+string(h.id))
	if err != nil {
		return err
	}
	h.writer = h.store.As(h.id, epoch.Epoch)
	return h.writer.Renew(ctx, authority.Default().Lease, inventory.FencedByWatchdog)
}

// join writes down the host and its VMs.
func (h *simHost) join(ctx context.Context) error {
	if err := h.writer.PutHostSpec(ctx, inventory.HostSpec{
		Address: "192.0.2.1:7443", Trunk: "192.0.2.1:7444", Version: "sim", CPUs: scaleHostCPUs, Memory: scaleHostRAM, NetworkAll: true,
		Datastores: []inventory.DatastoreMount{{ID: "ds-sim", Name: "shared", Path: "/mnt/shared", Shared: true}},
	}); err != nil {
		return err
	}
	for i := range scaleVMsEach {
		id := inventory.VMID(fmt.Sprintf("vm-%s-%d", h.id, i))
		if err := h.writer.CreateVM(ctx, inventory.VM{ID: id, Spec: inventory.VMSpec{
			Name: string(id[3:]), UUID: "8f2b7c1e-0000-4000-8000-000000000000", CPUs: 2, Memory: 4 << 30, Machine: "pc-q35-10.0", CPUModel: "Westmere",
			Disks:   []inventory.Disk{{Name: "disk0", File: inventory.File{Datastore: "ds-sim", Path: "images/" + string(id) + ".qcow2"}, Format: inventory.Qcow2, Size: 40 << 30}},
			Created: time.Now(), Layout: inventory.LayoutNew,
		}, Run: inventory.VMRun{Owner: h.id, Generation: 1, Wanted: inventory.PowerOn}}); err != nil {
			return err
		}
		if err := h.writer.PutVMStatus(ctx, id, inventory.VMStatus{State: inventory.Running, Host: h.id, Since: time.Now()}); err != nil {
			return err
		}
		h.vms = append(h.vms, id)
	}
	return nil
}

// live renews and watches as an agent does, until ctx ends. The end of its epoch is an error: what is measured then is a cluster that recovers.
func (h *simHost) live(ctx context.Context, f *fleet) error {
	settings := authority.Default()
	ctx, stop := context.WithCancel(ctx)
	var watches errgroup.Group
	begin := rand.N(scaleSpread) //nolint:gosec // no secret
	for _, kind := range []store.Kind{store.VMs, store.Hosts, store.Networks, store.Migrations} {
		watches.Go(func() error {
			select {
			case <-f.came:
			case <-ctx.Done():
				return nil // it ended before its watches began
			}
			if err := wait(ctx, begin); err != nil {
				return nil //nolint:nilerr // likewise
			}
			for range h.store.Watch(ctx, kind) {
				continue // an agent would read the object if it is its own
			}
			return nil
		})
	}
	defer func() { stop(); _ = watches.Wait() }()       // they return nil
	next := time.Now().Add(rand.N(settings.RenewEvery)) //nolint:gosec // no secret
	status := rand.N(10 * time.Second)                  //nolint:gosec // likewise
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
		}
		next = next.Add(settings.RenewEvery)
		clock := startClock()
		within, done := context.WithTimeout(ctx, settings.RenewTimeout)
		err := h.writer.Renew(within, settings.Lease, inventory.FencedByWatchdog)
		done()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, store.ErrEpochOver) {
			return fmt.Errorf("%s was fenced while it renewed: %w", h.id, err)
		}
		select {
		case <-f.came:
		default:
			continue // what is counted begins when all are there
		}
		f.sent.Add(1)
		if err != nil {
			f.missed.Add(1)
		} else {
			select {
			case f.latency <- clock.now():
			default: // there are a million already
			}
		}
		if (n+int(status/time.Second))%10 == 0 {
			_ = h.writer.PutHostStatus(ctx, inventory.HostStatus{MemoryFree: scaleHostRAM / 2, VMs: scaleVMsEach}) // the next one comes
		}
		if f.churn.Load() && rand.IntN(len(f.hosts)) < scaleChurn { //nolint:gosec // no secret
			state := []inventory.VMState{inventory.Running, inventory.Paused}[n%2]
			_ = h.writer.PutVMStatus(ctx, h.vms[n%len(h.vms)], inventory.VMStatus{State: state, Host: h.id, Since: time.Now()}) // likewise
		}
	}
}

// times returns how long renewals took, in milliseconds.
func (f *fleet) times() []float64 {
	for {
		select {
		case t := <-f.latency:
			f.seen = append(f.seen, t)
		default:
			return f.seen
		}
	}
}

func (f *fleet) close() error {
	var all error
	for _, h := range f.hosts {
		if h.store != nil {
			all = errors.Join(all, h.store.Close())
		}
	}
	return errors.Join(all, f.proxy.close())
}

// countingProxy passes connections on and counts what goes through, both ways. TLS goes through it untouched.
type countingProxy struct {
	address  string
	listener net.Listener
	bytes    atomic.Int64
	all      errgroup.Group
}

func newCountingProxy(ctx context.Context, listen, to string) (*countingProxy, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, err
	}
	p := &countingProxy{address: l.Addr().String(), listener: l}
	p.all.Go(func() error {
		for {
			from, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			p.all.Go(func() error { p.pass(ctx, from, to); return nil })
		}
	})
	return p, nil
}

func (p *countingProxy) pass(ctx context.Context, from net.Conn, to string) {
	defer func() { _ = from.Close() }()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	var both errgroup.Group
	copyOne := func(dst, src net.Conn) func() error {
		return func() error {
			buffer := make([]byte, 4<<10)
			for {
				n, err := src.Read(buffer)
				p.bytes.Add(int64(n))
				if _, werr := dst.Write(buffer[:n]); werr != nil || err != nil {
					_, _ = dst.Close(), src.Close() // one end is the end of both
					return nil                      //nolint:nilerr // the other end gave up: what it had to say, it says itself
				}
			}
		}
	}
	both.Go(copyOne(conn, from))
	both.Go(copyOne(from, conn))
	_ = both.Wait() // they return nil
}

func (p *countingProxy) close() error {
	return errors.Join(p.listener.Close(), p.all.Wait())
}

// judge fills in the goals, by the worse of the two halves.
func (s *Scale) judge() {
	s.Goals = nil
	for _, g := range []struct {
		name, unit string
		want       float64
		of         func(ScaleHalf) float64
	}{
		{"memory of the leader's agent and store", "MiB", scaleMemoryGoal, func(h ScaleHalf) float64 { return h.Resident["agent"] + h.Resident["store"] }},
		{"reading all VMs, p99", "ms", scaleReadGoal, func(h ScaleHalf) float64 { return percentile(h.ListVMs, 99) }},
		{"control traffic of a host, nothing changing", "B/s", scaleTrafficGoal, func(ScaleHalf) float64 { return s.Quiet.Traffic }},
	} {
		got := max(g.of(s.Quiet), g.of(s.Churn))
		s.Goals = append(s.Goals, Goal{g.name, g.want, got, g.unit, got <= g.want})
	}
}

// table is the report for people, in Markdown.
func (s *Scale) table() string {
	var b strings.Builder
	w := bufio.NewWriter(&b)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // a strings.Builder takes all
	c := s.Machine
	line("Measured %s at %s on %d CPUs (%s), %s %s %s, %s: leader, store and all simulated hosts on this one machine.", c.Date, c.Commit, c.CPUs, c.CPU, c.OS, c.Arch, c.Kernel, c.Go)
	line("%d simulated hosts with %d VMs beside one real host that leads; up after %.1f s. Each host has a connection, an epoch, a renewal a second, and an agent's watches; "+
		"no QEMU, no switch, no API of its own.\n", s.Hosts, s.VMs, s.Up)
	line("%d renewals, %d missed; one took %.1f ms (p50), %.1f ms (p99), %.1f ms (longest).\n", s.Sent, s.Missed, s.Rate["p50"], s.Rate["p99"], s.Rate["max"])
	line("| figure | nothing changes | %d changes a second |\n|---|---|---|", scaleChurn)
	row := func(name, format string, f func(ScaleHalf) float64) {
		line("| %s | "+format+" | "+format+" |", name, f(s.Quiet), f(s.Churn))
	}
	for _, role := range []string{"agent", "store", "hosts"} {
		row("CPU "+role+", % of a core", "%.1f", func(h ScaleHalf) float64 { return h.CPU[role] })
	}
	for _, role := range []string{"agent", "store"} {
		row("resident "+role+", MiB", "%.1f", func(h ScaleHalf) float64 { return h.Resident[role] })
	}
	for _, p := range []int{50, 99} {
		row(fmt.Sprintf("reading all VMs, p%d, ms", p), "%.1f", func(h ScaleHalf) float64 { return percentile(h.ListVMs, p) })
		row(fmt.Sprintf("reading all hosts, p%d, ms", p), "%.1f", func(h ScaleHalf) float64 { return percentile(h.ListHost, p) })
	}
	row("traffic of a host with the store, B/s", "%.0f", func(h ScaleHalf) float64 { return h.Traffic })
	row("load of the machine", "%.1f", func(h ScaleHalf) float64 { return h.Load })
	line("\n| goal | at most | measured | |\n|---|---|---|---|")
	for _, g := range s.Goals {
		met := "missed"
		if g.Met {
			met = "met"
		}
		line("| %s | %g %s | %.1f %s | %s |", g.Name, g.Want, g.Unit, g.Got, g.Unit, met)
	}
	_ = w.Flush() // as above
	return b.String()
}

// write judges the goals, prints the table, and puts table and JSON into the folder.
func (s *Scale) write(dir, name string) error {
	s.judge()
	fmt.Println(s.table())
	return save(dir, name, s, map[string]string{".md": s.table()})
}
