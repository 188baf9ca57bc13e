package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The pauses of the loops that follow the store.
const (
	// resyncEvery is how often a loop looks at its own side without having been told, and tries again what it could not do.
	resyncEvery = 2 * time.Second
	// rereadEvery is how often a loop reads everything of its kind without having been told. The watch misses nothing that we know of; this
	// is for what we do not know. With a thousand hosts, each such read of ten thousand VMs is megabytes.
	rereadEvery = 10 * time.Minute
	// readEachMax is up to how many changed objects are read one by one; from more on all of the kind are read at once.
	readEachMax = 32
)

// news is what a loop was told since its last step that succeeded.
type news struct {
	all bool            // everything may have changed: the first step, and every rereadEvery
	ids map[string]bool // these did
}

// none reports whether nothing changed: the step is for the loop's own side.
func (n news) none() bool { return !n.all && len(n.ids) == 0 }

// statusEvery is how often the host's own status is published.
const statusEvery = 10 * time.Second

// memoryGrain is the part of a host's memory, as a divisor, by which what is free must have changed to be published.
const memoryGrain = 64

// follow calls step whenever something of the kind changed and every resyncEvery, until ctx ends. A step that fails is
// logged once per kind of failure and tried again with the same news and what came since.
func (a *Agent) follow(ctx context.Context, kind store.Kind, step func(context.Context, news) error) error {
	changes := a.Store.Watch(ctx, kind)
	tick := time.NewTicker(resyncEvery)
	defer tick.Stop()
	last := ""
	told, read := news{all: true, ids: map[string]bool{}}, time.Now()
	for {
		if time.Since(read) >= rereadEvery {
			told.all, read = true, time.Now()
		}
		within, done := context.WithTimeout(ctx, storeTimeout)
		err := step(within, told)
		done()
		now := ""
		if err != nil {
			now = err.Error()
		} else {
			told = news{ids: map[string]bool{}}
		}
		if now != last && ctx.Err() == nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "loop", slog.String("kind", string(kind)), slog.String("err", now))
			a.noteTrouble(ctx, kind, err, last)
			last = now
		}
		select {
		case e, more := <-changes:
			if !more {
				return nil
			}
			for ; more; e, more = next(changes) {
				told.ids[e.ID] = true
			}
		case <-tick.C:
		case <-ctx.Done():
			for range changes { // until the watch has ended
				continue
			}
			return nil
		}
	}
}

// next takes another change if there is one already, so that many at once are one step.
func next(changes <-chan store.Event) (store.Event, bool) {
	select {
	case e, more := <-changes:
		return e, more
	default:
		return store.Event{}, false
	}
}

// followNetworks gives the switch the cluster's networks; the gateway of each runs where its record says.
func (a *Agent) followNetworks(ctx context.Context) error {
	var all []inventory.Network
	var last []vnet.NetworkSpec
	var pid int
	return a.follow(ctx, store.Networks, func(ctx context.Context, told news) (err error) {
		if !told.none() {
			if all, err = a.Store.Networks(ctx); err != nil {
				return err
			}
		}
		a.keepBridges(ctx, append([]inventory.Network{}, all...))
		specs := make([]vnet.NetworkSpec, 0, len(all))
		for _, n := range all {
			if n.Spec.IsBridge() {
				continue // the switch has no part in it
			}
			spec := vnet.NetworkSpec{ID: n.ID}
			if n.Spec.Gateway == a.Host() && n.Spec.Subnet != "" {
				spec.Gateway = &vnet.GatewaySpec{Subnet: n.Spec.Subnet, Forwards: n.Spec.Forwards}
			}
			specs = append(specs, spec)
		}
		status, err := a.Switch.Status(ctx)
		if err != nil {
			return err
		}
		same := func(x, y vnet.NetworkSpec) bool {
			return x.ID == y.ID && (x.Gateway == nil) == (y.Gateway == nil) &&
				(x.Gateway == nil || x.Gateway.Subnet == y.Gateway.Subnet && slices.Equal(x.Gateway.Forwards, y.Gateway.Forwards))
		}
		if status.PID == pid && slices.EqualFunc(last, specs, same) {
			return nil
		}
		if err := a.Switch.SetNetworks(ctx, specs); err != nil {
			return err
		}
		last, pid = specs, status.PID
		return nil
	})
}

// followHosts gives the switch the trunks to all other hosts, and looks whether they have datastores that are said to be local here.
func (a *Agent) followHosts(ctx context.Context) error {
	var all []inventory.Host
	var last []vnet.Peer
	var pid int
	unpublished := false // this host's record says something else of its datastores than is so now
	return a.follow(ctx, store.Hosts, func(ctx context.Context, told news) (err error) {
		if !told.none() {
			if all, err = a.Store.Hosts(ctx); err != nil {
				return err
			}
		}
		if a.arbiters.compare(a.Host(), all) {
			a.retellWarden(ctx)
			unpublished = true
		}
		if unpublished {
			if err := a.publish(ctx); err != nil {
				return err
			}
			unpublished = false
		}
		var peers []vnet.Peer
		for _, h := range all {
			if h.ID != a.Host() && h.Spec.Trunk != "" {
				peers = append(peers, vnet.Peer{ID: h.ID, Addr: h.Spec.Trunk})
			}
		}
		status, err := a.Switch.Status(ctx)
		if err != nil {
			return err
		}
		if status.PID == pid && slices.Equal(last, peers) {
			return nil
		}
		if err := a.Switch.SetPeers(ctx, peers); err != nil {
			return err
		}
		last, pid = peers, status.PID
		return nil
	})
}

// followVMs takes in and lets go of VMs that changed hands, and wakes the migrations whose end the store may have told: the target has
// become owner.
func (a *Agent) followVMs(ctx context.Context) error {
	select { // before, it would take in what adopt finds
	case <-a.ready:
	case <-ctx.Done():
		return nil
	}
	open := map[string]bool{} // VMs that could not be taken in or let go of yet
	return a.follow(ctx, store.VMs, func(ctx context.Context, told news) (err error) {
		maps.Copy(told.ids, open)
		if open, err = a.reconcile(ctx, told); err != nil {
			return err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, v := range a.vms {
			v.mu.Lock()
			if v.source != nil {
				v.source.Look()
			}
			v.mu.Unlock()
		}
		return nil
	})
}

// keepStatus publishes the host's status when it is another one, until ctx ends. Free memory changes all the time: it is written when it differs
// by memoryGrain, since every host is told of every write.
func (a *Agent) keepStatus(ctx context.Context) {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var written inventory.HostStatus
	for {
		now := a.status()
		if off := max(now.MemoryFree-written.MemoryFree, written.MemoryFree-now.MemoryFree); now.VMs != written.VMs || off*memoryGrain > memory().total {
			within, done := context.WithTimeout(ctx, storeTimeout)
			err := a.writer.PutHostStatus(within, now)
			done()
			if err == nil {
				written = now
			} else if ctx.Err() == nil {
				a.Log.LogAttrs(ctx, slog.LevelWarn, "host status not stored", slog.Any("err", err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// CreateNetwork makes a layer-2 segment and returns it; the gateway of a subnet for which no host was named is here.
func (a *Agent) CreateNetwork(ctx context.Context, n inventory.Network) (inventory.Network, error) {
	made := n
	err := a.tasks.Run(ctx, "network.create", string(n.ID), string(n.ID), func(ctx context.Context, _ *task.Task) (err error) {
		made, err = a.createNetwork(ctx, n)
		return err
	})
	return made, err
}

func (a *Agent) createNetwork(ctx context.Context, n inventory.Network) (inventory.Network, error) {
	if err := checkNetwork(n); err != nil {
		return n, err
	}
	if n.Spec.Gateway == "" && n.Spec.Subnet != "" {
		n.Spec.Gateway = a.Host()
	}
	if n.Spec.Gateway != "" {
		if _, err := a.Store.Host(ctx, n.Spec.Gateway); err != nil {
			return n, err
		}
	}
	return n, a.writer.CreateNetwork(ctx, n)
}
