package authority

import (
	"fmt"
	"strconv"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// KindConfirmDead is the kind of the plan that an operator's word makes: its object is a host that is dead for certain. The host is
// fenced, and its VMs get new owners.
const KindConfirmDead = "host.confirm-dead"

// The arguments of the plan: which life of the host the word is about.
const (
	argRevision = "revision"
	argEpoch    = "epoch"
)

// ConfirmPlan returns the plan of an operator's word that the host of this renewal is dead. It is about this life of the host only.
func ConfirmPlan(r inventory.Renewal, by string, at time.Time) inventory.Plan {
	return inventory.Plan{
		Kind: KindConfirmDead, Object: string(r.Host), By: by, Requested: at,
		Arguments: map[string]string{argRevision: strconv.FormatInt(r.Revision, 10), argEpoch: strconv.FormatUint(r.Epoch, 10)},
	}
}

// Confirms reports whether the plan is the word that the host of this renewal is dead, in this life.
func Confirms(p inventory.Plan, r inventory.Renewal) bool {
	return p.Kind == KindConfirmDead && p.Object == string(r.Host) &&
		p.Arguments[argRevision] == strconv.FormatInt(r.Revision, 10) && p.Arguments[argEpoch] == strconv.FormatUint(r.Epoch, 10)
}

// Word is what is known of a host that somebody says is dead.
type Word struct {
	Host     inventory.HostID
	Asked    inventory.HostID // the host that is asked to believe it
	Standing Standing         // as the leader has written it; empty: up
	Answers  string           // the address at which its agent answers; empty: it does not
	Leader   inventory.HostID // empty: none right now
}

// Against lists what stands against the word; nil: nothing. A host that gives a sign of life is not dead, whoever says so.
func (w Word) Against() []string {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if w.Host == w.Asked {
		add("%s is the host that you ask, so it lives: ask another one", w.Host)
	}
	if w.Standing == Up || w.Standing == "" {
		add("%s is up: it has renewed its authority within the last seconds; if it has just died, wait until godwit host ls shows it as silent", w.Host)
	}
	if w.Answers != "" && w.Host != w.Asked {
		add("%s answers at %s: its agent runs; switch the machine off first", w.Host, w.Answers)
	}
	if w.Leader == "" {
		add("no host leads the cluster right now, and only the leader fences: try again in a few seconds")
	}
	return bad
}
