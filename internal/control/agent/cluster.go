package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/control/doctor"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// ClusterView is the cluster as one host sees it.
type ClusterView struct {
	Name         string
	Leader       inventory.HostID // empty: none right now
	Store        store.Health
	Certificates []CertificateView // the CA's first
	Settings     [][2]string
	Alarms       []string // what needs a human, one line each
}

// CertificateView is when one certificate ends.
type CertificateView struct {
	Subject string // "ca", or a host's name
	Expires time.Time
	Err     string // why the host could not be asked
}

// Cluster says how the cluster and its store are. Members and hosts that do not answer are told as such and are no error.
func (a *Agent) Cluster(ctx context.Context) (ClusterView, error) {
	c := ClusterView{Name: a.Identity.Cluster()}
	var err error
	if c.Store, err = a.Store.Health(ctx); err != nil {
		return c, err
	}
	if c.Leader, err = a.Store.Leader(ctx); err != nil && !fault.Is(err, fault.NotFound) {
		return c, err
	}
	hosts, err := a.Store.Hosts(ctx)
	if err != nil {
		return c, err
	}
	c.Certificates = append([]CertificateView{{Subject: "ca", Expires: a.Identity.CAExpires()}}, a.certificates(ctx, hosts)...)
	c.Settings = [][2]string{
		{"additions refused from", strconv.Itoa(store.FullRefuse) + " % of the quota"},
		{"tasks kept", fmt.Sprintf("%d that have ended, for %d days", store.TasksKept, store.TaskAgeMax/(24*time.Hour))},
		{"events kept", fmt.Sprintf("%d, for %d days", store.EventsKept, store.EventAgeMax/(24*time.Hour))},
		{"migrations kept", fmt.Sprintf("%d that are over, for %d days", store.MigrationsKept, store.MigrationAgeMax/(24*time.Hour))},
		{"requests kept", fmt.Sprintf("%d, for %v", store.RequestsKept, store.RequestAgeMax)},
	}
	c.Alarms = alarms(c, time.Now())
	return c, nil
}

// certificates asks every host for the certificate that it shows.
func (a *Agent) certificates(ctx context.Context, hosts []inventory.Host) []CertificateView {
	all := make([]CertificateView, len(hosts))
	var asked sync.WaitGroup
	for i, h := range hosts {
		all[i].Subject = string(h.ID)
		if h.ID == a.Host() {
			all[i].Expires = a.Identity.Expires()
			continue
		}
		asked.Go(func() {
			within, done := context.WithTimeout(ctx, reachMax)
			defer done()
			var err error
			if all[i].Expires, err = a.Peers.Expires(within, h.ID, h.Spec.Address); err != nil {
				all[i].Err = err.Error()
			}
		})
	}
	asked.Wait()
	return all
}

// alarms lists what needs a human.
func alarms(c ClusterView, now time.Time) []string {
	all := storeTrouble(c.Store)
	if c.Leader == "" {
		all = append(all, "no host leads the cluster: it takes a few seconds after a leader has gone; then see the logs of the hosts")
	}
	for _, cert := range c.Certificates {
		if check := doctor.Certificate(cert.Expires, now); cert.Err == "" && check.State != doctor.Good {
			all = append(all, "certificate of "+cert.Subject+": "+check.Detail)
		}
	}
	return all
}

// storeTrouble lists what is wrong with the store.
func storeTrouble(h store.Health) []string {
	var all []string
	for _, m := range h.Members {
		switch {
		case m.Corrupt:
			all = append(all, "member "+m.Name+" of the store differs from the others: remove it from the cluster and join that host again")
		case m.Err != "":
			all = append(all, "member "+m.Name+" of the store: "+m.Err)
		}
	}
	switch {
	case h.NoSpace():
		all = append(all, "the store is full and takes no writes ("+h.FullText()+"): the leader makes room; if it cannot, raise store-quota on every host that carries the store")
	case h.Full != "":
		all = append(all, "the store is almost full ("+h.Full+"), so nothing new is taken: remove VMs that are not needed, or raise store-quota on every host that carries the store")
	case h.Percent() >= store.FullWarn:
		all = append(all, "the store holds "+h.FullText())
	}
	return all
}

// checkStore is the doctor's look at the store.
func (a *Agent) checkStore(ctx context.Context) Check {
	h, err := a.Store.Health(ctx)
	if err != nil {
		return Check{Name: "store", State: doctor.Bad, Detail: err.Error(), Fix: "see godwit's log on the hosts that have the store"}
	}
	c := Check{Name: "store", State: doctor.Good, Detail: fmt.Sprintf("%d members, %s", len(h.Members), h.FullText())}
	if wrong := storeTrouble(h); len(wrong) > 0 {
		c.State, c.Detail, c.Fix = doctor.Warn, wrong[0], "see godwit cluster info"
		if h.NoSpace() || h.Full != "" || slices.ContainsFunc(h.Members, func(m store.MemberHealth) bool { return m.Corrupt }) {
			c.State = doctor.Bad
		}
	}
	return c
}

// BackUp begins a backup: what it is of, and etcd's snapshot, which the caller reads and closes.
func (a *Agent) BackUp(ctx context.Context) (store.Manifest, *store.Snapshot, error) {
	h, err := a.Store.Health(ctx)
	if err != nil {
		return store.Manifest{}, nil, err
	}
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return store.Manifest{}, nil, err
	}
	snapshot, err := a.Store.Snapshot(ctx)
	if err != nil {
		return store.Manifest{}, nil, err
	}
	m := store.Manifest{
		Cluster: a.Identity.Cluster(), Host: a.Host(), Made: time.Now(), Version: a.Version, Etcd: snapshot.Etcd, Revision: max(snapshot.Revision, h.Revision), VMs: len(vms),
	}
	for _, member := range h.Members {
		m.Members = append(m.Members, member.Name)
	}
	a.tasks.Event(ctx, inventory.Event{Kind: "cluster.backed-up", Object: "store", ObjectName: "store", By: caller(ctx), Message: fmt.Sprintf("at revision %d", m.Revision)})
	return m, snapshot, nil
}
