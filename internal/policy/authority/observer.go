package authority

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Standing is what the observer thinks of a host.
type Standing string

// The standings.
const (
	Up      Standing = "up"      // it renews, or has not been silent for long enough to say otherwise
	Silent  Standing = "silent"  // for so long that it may be fenced, if it can be
	Blocked Standing = "blocked" // as Silent, but nobody can know whether its VMs are dead
	Fenced  Standing = "fenced"  // its VMs are dead, and others may run them
)

// Finding is what the observer says of one host.
type Finding struct {
	Host     inventory.HostID
	Standing Standing
	Revision int64         // of Silent: what the fence transaction compares
	Quiet    time.Duration // how long the observer has waited for a sign of life; of Fenced: 0
	Wait     time.Duration // how long it waits before it takes the host for silent
	Still    bool          // it has been quiet for so long that its VMs stand still; a planned restart is given its longer lease
	Alive    bool          // the observer itself has seen a sign of life, so that Up is more than the want of a reason against it
	Why      string        // of Silent and Blocked, one line for the user
}

// Observer is the leader's view of the hosts' renewals. A leader makes its own, and never takes over what another one saw or when: the
// first sight of a renewal is its own. Take NewObserver; its methods change it in place.
type Observer struct {
	Settings Settings
	seen     map[inventory.HostID]sight
	read     Moment // when it read last; 0: never
}

type sight struct {
	renewal inventory.Renewal
	first   Moment // when this renewal was first seen, and later by the time in which the observer saw nothing at all
	alive   bool   // it was not the first sight of the host
	dead    string // who says that the host is dead, for certain: an operator, or a confirmed power-off; "": nobody
}

// NewObserver returns an observer that has seen nothing.
func NewObserver(s Settings) Observer {
	return Observer{Settings: s, seen: map[inventory.HostID]sight{}}
}

// Read takes the last renewals of all hosts, as one linearisable read returned them; now is a moment after its answer. A host that is not
// among them was removed, and is forgotten. Time in which nothing was read counts for no host: a store that was away was away for the
// hosts too, and they need a moment to renew when it is back.
func (o *Observer) Read(all []inventory.Renewal, now Moment) {
	if blind := now - o.read - o.Settings.RenewEvery; o.read != 0 && blind > 0 {
		for host, s := range o.seen {
			s.first += blind
			o.seen[host] = s
		}
	}
	o.read = now
	there := map[inventory.HostID]bool{}
	for _, r := range all {
		there[r.Host] = true
		o.Saw(r, now)
	}
	for host := range o.seen {
		if !there[host] {
			o.Forget(host)
		}
	}
}

// Saw takes a renewal as it was read by a linearisable read, or came by a watch, at now. A renewal with an older revision than the last is
// ignored; a newer one, and a new epoch, takes back what was said of the host's death before.
func (o *Observer) Saw(r inventory.Renewal, now Moment) {
	old, known := o.seen[r.Host]
	switch {
	case known && (r.Revision < old.renewal.Revision || r.Epoch < old.renewal.Epoch):
		return
	case known && r.Revision == old.renewal.Revision && (r.Epoch == old.renewal.Epoch || r.Fenced):
		old.renewal = r // a fence makes a new epoch, and is no sign of life
		o.seen[r.Host] = old
		return
	}
	o.seen[r.Host] = sight{renewal: r, first: now, alive: known}
}

// Forget takes a host out: it was removed from the cluster.
func (o *Observer) Forget(host inventory.HostID) { delete(o.seen, host) }

// ConfirmDead takes somebody's word that the host whose last renewal had this revision is dead. It returns false when the host has
// given a sign of life since, so that the word is about an earlier life.
func (o *Observer) ConfirmDead(host inventory.HostID, revision int64, who string) bool {
	s, known := o.seen[host]
	if !known || s.renewal.Revision != revision {
		return false
	}
	s.dead = who
	o.seen[host] = s
	return true
}

// Look says where every host stands, ordered by name. A host whose finding is Silent may be fenced right away, by a transaction that
// compares its Revision.
//
// When more than one host, and more than MassSilent percent of those that ever renewed, are quiet for so long that their VMs stand still,
// it may be the network or the store that failed: then none is fenced without proof of its own. A host that was fenced before does not
// count as quiet. Quiet counts from Stop on and not from Silence, so that hosts that fell silent together are not fenced one after the
// other as their waits end.
func (o *Observer) Look(now Moment) []Finding {
	all := make([]Finding, 0, len(o.seen))
	quiet, renewing := 0, 0
	for host, s := range o.seen {
		f := Finding{Host: host, Standing: Up, Revision: s.renewal.Revision, Quiet: now - s.first, Wait: o.Settings.SilenceFor(s.renewal.Lease), Alive: s.alive}
		f.Still = f.Quiet >= o.Settings.Stop+max(0, s.renewal.Lease-o.Settings.Lease) && !s.renewal.Fenced
		switch {
		case s.renewal.Fenced:
			f.Standing, f.Quiet = Fenced, 0
		case s.dead != "":
			f.Standing, f.Why = Silent, s.dead
		case f.Quiet >= f.Wait:
			f.Standing = Silent
			f.Why = fmt.Sprintf("it was silent for %v, and its watchdog has reset it", f.Quiet.Round(100*time.Millisecond))
		}
		if s.renewal.Revision != 0 {
			renewing++
			if f.Still && s.dead == "" {
				quiet++
			}
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Finding) int { return cmp.Compare(a.Host, b.Host) })
	mass := (quiet > 1 || defect.Seeded.MassOfOne()) && quiet*100 > o.Settings.MassSilent*renewing
	for i, f := range all {
		if s := o.seen[f.Host]; f.Standing == Silent && s.dead == "" {
			all[i].Standing, all[i].Why = s.proof(f, mass, quiet, renewing)
		}
	}
	return all
}

// proof says whether a host that is silent for long enough can be fenced, and why not.
func (s sight) proof(f Finding, mass bool, quiet, renewing int) (Standing, string) {
	const todo = "see to it that it is off, then say godwit host confirm-dead %s"
	switch {
	case s.renewal.Revision == 0:
		return Blocked, fmt.Sprintf("%s has never had an authority: start Godwit there; if it is gone for good, "+todo, f.Host, f.Host)
	case s.renewal.Fencing == inventory.FencedByNobody:
		return Blocked, fmt.Sprintf("%s cannot be proven dead: it has no watchdog, and nobody has confirmed it: "+todo, f.Host, f.Host)
	case mass:
		return Blocked, fmt.Sprintf("%s cannot be proven dead: %d of %d hosts are silent at once, so it may be the network or the store that failed: "+todo,
			f.Host, quiet, renewing, f.Host)
	}
	return Silent, f.Why
}
