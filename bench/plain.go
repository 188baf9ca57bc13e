package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/converge"
	"github.com/godwit-vm/godwit/test/lab"
)

// plain is a guest that is moved by hand: from one QEMU to the next over a unix socket, with nothing between them.
type plain struct {
	config qemu.Config // of the next QEMU but for its run directory and socket
	ports  [2]string   // sockets of its switch ports, used in turn
	dir    string
	moves  int
	at     *qemu.Process // where it runs
}

// tuning is what QEMU is told before it migrates.
type tuning struct {
	capabilities map[string]bool
	parameters   qmp.MigrationParameters
	track        *converge.Track // changes the downtime limit while it goes on; nil: it stays
}

// sameAsGodwit is what Godwit tells its QEMUs, at the same moments.
func sameAsGodwit(o options) tuning {
	t := oneLimit(o)
	track := migrate.Track(inventory.MigrationSpec{DowntimeMax: o.downtime})
	t.track, t.parameters.DowntimeMax = &track, track.Downtime()
	return t
}

// oneLimit gives QEMU all of its downtime limit from the beginning.
func oneLimit(o options) tuning {
	bandwidth := o.bandwidth
	if bandwidth == 0 {
		bandwidth = migrate.BandwidthFree
	}
	return tuning{
		capabilities: migrate.Capabilities(),
		parameters:   qmp.MigrationParameters{BandwidthMax: bandwidth, DowntimeMax: converge.DowntimeLimit(o.downtime)},
	}
}

// untouched leaves QEMU at its defaults, 128 MiB/s and 300 ms among them; only events are switched on, to see anything at all.
func untouched() tuning {
	off := migrate.Capabilities()
	for name := range off {
		off[name] = name == "events"
	}
	return tuning{
		capabilities: off,
		parameters:   qmp.MigrationParameters{BandwidthMax: 128 * inventory.BytesPerSecond(inventory.MiB), DowntimeMax: 300 * time.Millisecond},
	}
}

// newPlain boots a guest that has the VM's hardware, from the same files, on a port of the first host's switch.
func newPlain(ctx context.Context, c *lab.Cluster, like inventory.VMSpec, abilities qemu.Abilities, user *qemu.User) (*plain, error) {
	spec := like
	spec.Name, spec.UUID = like.Name+"-plain", inventory.NewUUID()
	spec.Disks = append([]inventory.Disk(nil), like.Disks...)
	spec.NICs = append([]inventory.NIC(nil), like.NICs...)
	images := image.Folder{Root: c.Datastore, Owner: (*image.Owner)(user)}
	for i := range spec.Disks {
		d := &spec.Disks[i]
		d.File.Path = fmt.Sprintf("%s-%d.%s", spec.Name, i, d.Format)
		if err := images.Create(ctx, filepath.Join(c.Datastore, d.File.Path), d.Format, d.Size); err != nil {
			return nil, err
		}
	}
	p := &plain{dir: filepath.Join(c.Dir, "plain")}
	first := c.Hosts[0]
	switches := vnet.NewClient(filepath.Join(first.Run, "switch.sock"))
	defer switches.Close()
	for i := range spec.NICs {
		spec.NICs[i].MAC = inventory.NewMAC()
	}
	for i := range p.ports {
		id := fmt.Sprintf("%s-%d", spec.Name, i)
		port := vnet.PortSpec{ID: id, Network: lab.Network, Socket: filepath.Join(first.Run, "ports", id+".sock")}
		if user != nil {
			port.Owner = int(user.UID)
		}
		if err := switches.AddPort(ctx, port); err != nil {
			return nil, err
		}
		p.ports[i] = port.Socket
	}
	p.config = qemu.Config{Spec: spec, User: user, Env: qemu.Env{
		Abilities: abilities,
		File:      func(f inventory.File) (string, error) { return filepath.Join(c.Datastore, f.Path), nil },
	}}
	var err error
	if p.at, err = p.start(ctx, false); err != nil {
		return nil, err
	}
	return p, p.at.QMP().Cont(ctx)
}

// start starts the next QEMU, in a cgroup of its own like a VM of Godwit's.
func (p *plain) start(ctx context.Context, incoming bool) (*qemu.Process, error) {
	p.moves++
	c, name := p.config, strconv.Itoa(p.moves)
	c.Env.Incoming = incoming
	c.Env.RunDir = qemu.RunDir(filepath.Join(p.dir, name))
	c.Env.Ports = map[string]string{}
	for _, nic := range c.Spec.NICs {
		c.Env.Ports[nic.Name] = p.ports[p.moves%len(p.ports)]
	}
	c.Cgroup = filepath.Join("godwit", filepath.Base(filepath.Dir(p.dir))+"-plain", name)
	return qemu.Start(ctx, c)
}

func (p *plain) control() string                   { return p.at.Dir().Control() }
func (p *plain) resume(ctx context.Context) error  { return p.at.QMP().Cont(ctx) }
func (p *plain) suspend(ctx context.Context) error { return p.at.QMP().Stop(ctx) }

func (p *plain) close(ctx context.Context) error {
	return end(ctx, p.at)
}

// end kills a QEMU and removes what it leaves.
func end(ctx context.Context, process *qemu.Process) error {
	if err := process.Kill(ctx); err != nil {
		return err
	}
	return process.Cleanup()
}

// migrate moves the guest to a new QEMU. The target is started with -S and told to run when the source has completed, as
// Godwit does it, since nothing else keeps two copies from running. A migration that does not end before ctx is
// given up, and the Sample says so.
func (p *plain) migrate(ctx context.Context, t tuning) (Sample, error) {
	// Clean-up has a time of its own.
	after := context.WithoutCancel(ctx)
	clock := startClock()
	target, err := p.start(ctx, true)
	if err != nil {
		return Sample{}, err
	}
	clock.mark("started")
	s, err := p.stream(ctx, clock, target, t)
	if err != nil || s.Failed != "" {
		if undo := p.giveUp(after, target); undo != nil {
			return s, undo
		}
		return s, err
	}
	source := p.at
	p.at = target
	if m, err := source.QMP().Migration(after); err == nil {
		s.Downtime, s.Bytes, s.Rounds = milliseconds(m.Downtime), int64(m.RAM.Transferred), m.RAM.Rounds
	}
	if err := end(after, source); err != nil {
		return s, err
	}
	clock.mark("source gone")
	s.Total, s.Phases = clock.now(), clock.phases
	return s, nil
}

// giveUp has the source run on alone.
func (p *plain) giveUp(ctx context.Context, target *qemu.Process) error {
	ctx, done := context.WithTimeout(ctx, undoMax)
	defer done()
	events := p.at.QMP().Subscribe(qmp.EventMigration)
	defer events.Close()
	if err := p.at.QMP().MigrateCancel(ctx); err != nil {
		return err
	}
	for {
		m, err := p.at.QMP().Migration(ctx)
		if err != nil {
			return err
		}
		if m.Status.Ended() || m.Status == qmp.MigrationNone || m.Status == "" {
			return end(ctx, target)
		}
		if _, more := <-events.C; !more {
			return events.Err()
		}
	}
}

// stream copies the guest and lets it run at the target.
func (p *plain) stream(ctx context.Context, clock *clock, target *qemu.Process, t tuning) (Sample, error) {
	from, to := p.at.QMP(), target.QMP()
	left := from.Subscribe(qmp.EventMigration, qmp.EventStop)
	defer left.Close()
	arrived := to.Subscribe(qmp.EventResume)
	defer arrived.Close()
	uri := "unix:" + filepath.Join(string(target.Dir()), "incoming.sock")
	for _, conn := range []*qmp.Conn{to, from} {
		if err := conn.SetMigrationCapabilities(ctx, t.capabilities); err != nil {
			return Sample{}, err
		}
	}
	if err := to.MigrateIncoming(ctx, uri, false); err != nil {
		return Sample{}, err
	}
	if err := from.SetMigrationParameters(ctx, t.parameters); err != nil {
		return Sample{}, err
	}
	clock.mark("listening")
	if err := from.Migrate(ctx, uri); err != nil {
		return Sample{}, err
	}
	began := clock.mark("pre-copy")
	within, done := context.WithCancel(ctx)
	var limits sync.WaitGroup
	if t.track != nil {
		limits.Go(func() { keepLimit(within, from, *t.track) })
	}
	stopped, failed, err := followSource(ctx, clock, from, left, done)
	done()
	if err != nil || failed != "" {
		return Sample{Failed: failed}, err
	}
	completed := clock.now()
	if err := to.Cont(ctx); err != nil {
		return Sample{}, err
	}
	s := Sample{Waited: began, Copy: completed - began, Running: clock.mark("running")}
	limits.Wait()
	select {
	case e, more := <-arrived.C:
		if !more {
			return s, arrived.Err()
		}
		s.Pause = milliseconds(e.Time.Sub(stopped))
	case <-ctx.Done():
		return s, ctx.Err()
	}
	return s, nil
}

// limitEvery is how often QEMU is asked how far it is, as often as Godwit asks it.
const limitEvery = 20 * time.Millisecond

// keepLimit gives QEMU the downtime limit that Godwit would give it, until ctx ends.
func keepLimit(ctx context.Context, conn *qmp.Conn, track converge.Track) {
	allowed, began := track.Downtime(), time.Now()
	tick := time.NewTicker(limitEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m, err := conn.Migration(ctx)
		if err != nil {
			continue
		}
		var advice converge.Advice
		track, advice = track.Step(converge.Sample{At: time.Since(began), Passes: m.RAM.Rounds}) // the limit follows from the rounds alone
		if advice.Downtime > allowed && conn.SetMigrationParameters(ctx, qmp.MigrationParameters{DowntimeMax: advice.Downtime}) == nil {
			allowed = advice.Downtime
		}
	}
}

// followSource returns when the source has completed, with the time at which it stopped, or says why it did not. It calls stops when the guest has
// stopped.
func followSource(
	ctx context.Context, clock *clock, conn *qmp.Conn, events *qmp.Events, stops func(),
) (stopped time.Time, failed string, err error) {
	for {
		select {
		case e, more := <-events.C:
			if !more {
				return stopped, "", events.Err()
			}
			if e.Name == qmp.EventStop {
				stopped = e.Time
				stops()
				clock.mark("stopped")
				continue
			}
			switch e.Migration() { //nolint:exhaustive // the others change nothing
			case qmp.MigrationPreSwitchover:
				if err := conn.MigrateContinue(ctx); err != nil {
					return stopped, "", err
				}
			case qmp.MigrationCompleted:
				clock.mark("completed")
				return stopped, "", nil
			case qmp.MigrationFailed, qmp.MigrationCancelled:
				return stopped, "qemu reports " + string(e.Migration()), nil
			}
		case <-ctx.Done():
			return stopped, tooLong, nil
		}
	}
}
