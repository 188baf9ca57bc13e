package authority

import (
	"cmp"
	"fmt"
	"slices"
	"time"

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
	Revision int64  // of Silent: what the fence transaction compares
	Why      string // of Blocked, and of a fence, one line for the user
}

// Observer is the leader's view of the hosts' renewals. A leader makes its own, and never takes over what another one saw or when: the
// first sight of a renewal is its own. Take NewObserver; its methods change it in place.
type Observer struct {
	Settings Settings
	seen     map[inventory.HostID]sight
}

type sight struct {
	renewal inventory.Renewal
	first   Moment // when this renewal was first seen
	dead    string // who says that the host is dead, for certain: an operator, or a confirmed power-off; "": nobody
	fenced  bool
}

// NewObserver returns an observer that has seen nothing.
func NewObserver(s Settings) Observer {
	return Observer{Settings: s, seen: map[inventory.HostID]sight{}}
}

// Saw takes a renewal as it was read by a linearisable read, or came by a watch, at now. A renewal with an older revision than the last is
// ignored; a newer one takes back what was said of the host's death before.
func (o *Observer) Saw(r inventory.Renewal, now Moment) {
	old, known := o.seen[r.Host]
	switch {
	case known && r.Revision < old.renewal.Revision:
		return
	case known && r.Revision == old.renewal.Revision:
		old.fenced = r.Fenced
		o.seen[r.Host] = old
		return
	}
	o.seen[r.Host] = sight{renewal: r, first: now, fenced: r.Fenced}
}

// Forget takes a host out: it was removed from the cluster.
func (o *Observer) Forget(host inventory.HostID) { delete(o.seen, host) }

// ConfirmDead takes somebody's word that the host whose last renewal had this revision is dead. It returns false when the host has
// renewed since, so that the word is about an earlier life.
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
func (o *Observer) Look(now Moment) []Finding {
	var all []Finding
	silent := 0
	for host, s := range o.seen {
		f := Finding{Host: host, Standing: Up, Revision: s.renewal.Revision}
		switch {
		case s.fenced:
			f.Standing = Fenced
		case s.dead != "":
			f.Standing, f.Why = Silent, s.dead
		case now-s.first >= o.Settings.SilenceFor(s.renewal.Lease):
			silent++
			f.Standing = Silent
			f.Why = fmt.Sprintf("it was silent for %v, and its watchdog has reset it", (now - s.first).Round(100*time.Millisecond))
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Finding) int { return cmp.Compare(a.Host, b.Host) })
	mass := silent > 1 && silent*100 > o.Settings.MassSilent*len(all)
	for i, f := range all {
		s := o.seen[f.Host]
		switch {
		case f.Standing != Silent || s.dead != "":
		case s.renewal.Fencing == inventory.FencedByNobody:
			all[i].Standing, all[i].Why = Blocked, fmt.Sprintf("%s cannot be proven dead: it has no watchdog, and nobody has confirmed it: "+
				"see to it that it is off, then say godwit host confirm-dead %s", f.Host, f.Host)
		case mass:
			all[i].Standing, all[i].Why = Blocked, fmt.Sprintf("%d of %d hosts are silent at once, so it may be the network or the store that failed: "+
				"see to it that %s is off, then say godwit host confirm-dead %s", silent, len(all), f.Host, f.Host)
		}
	}
	return all
}
