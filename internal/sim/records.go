package sim

import (
	"errors"
	"slices"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// What the store refuses for good.
var (
	errEpoch    = errors.New("its epoch is over")
	errTerm     = errors.New("another host leads")
	errConflict = errors.New("it has changed meanwhile")
)

// history is a record with every value that it had: those that read late, or from a member that is cut off, see an old one.
type history[T any] struct {
	revs []int64
	vals []T
}

func (h *history[T]) put(rev int64, v T) {
	h.revs, h.vals = append(h.revs, rev), append(h.vals, v)
}

// last returns the present value and its revision; 0: there is none.
func (h *history[T]) last() (v T, rev int64) {
	if n := len(h.vals); n > 0 {
		return h.vals[n-1], h.revs[n-1]
	}
	return v, 0
}

// asOf returns the value as of a revision of the store.
func (h *history[T]) asOf(rev int64) (v T, at int64) {
	for i, at := range slices.Backward(h.revs) {
		if at <= rev {
			return h.vals[i], at
		}
	}
	return v, 0
}

// epochRecord is host/H/epoch.
type epochRecord struct {
	Epoch, Fences uint64
	Boot          string
	Fenced        bool
}

// sign is what the record says of its host's life.
func (e epochRecord) sign() inventory.Sign {
	return inventory.Sign{Removed: e.Epoch == 0, Fenced: e.Fenced, BootID: e.Boot}
}

// aliveRecord is a renewal, with what its sender believed the time to be: for people only.
type aliveRecord struct {
	inventory.Renewal
	wall moment
}

// leaderRecord is the election key: gone when by is -1.
type leaderRecord struct {
	by      int
	created int64
}

// records is what the store holds. All of it changes inside of transactions only.
type records struct {
	w      *world
	rev    int64
	times  []moment // by revision: when it came to be
	epoch  []history[epochRecord]
	alive  []history[aliveRecord]
	run    []history[inventory.VMRun]
	place  []history[inventory.VMPlace]
	move   []history[inventory.MigrationStatus]
	leader history[leaderRecord]
}

func newRecords(w *world, hosts, vms int) records {
	r := records{
		w: w, rev: 1, times: []moment{0, 0}, epoch: make([]history[epochRecord], hosts), alive: make([]history[aliveRecord], hosts),
		run: make([]history[inventory.VMRun], vms), place: make([]history[inventory.VMPlace], vms),
	}
	r.leader.put(1, leaderRecord{by: -1})
	return r
}

func (r *records) next() int64 {
	r.rev++
	r.times = append(r.times, r.w.now)
	return r.rev
}

// at returns the revision that stood at a moment.
func (r *records) at(t moment) int64 {
	n := r.rev
	for n > 1 && r.times[n] > t {
		n--
	}
	return n
}

// change changes the run record of a VM, and writes it if that makes another one.
func (r *records) change(vm int, change func(inventory.VMRun) (inventory.VMRun, error)) error {
	run, _ := r.run[vm].last()
	next, err := change(run)
	if err == nil && next != run {
		r.run[vm].put(r.next(), next)
	}
	return err
}

// epochIs is the comparison that every transaction of an agent begins with.
func (r *records) epochIs(host int, epoch uint64) bool {
	now, _ := r.epoch[host].last()
	return now.Epoch == epoch || defect.Seeded.EpochUncompared()
}

// termIs is the one that every transaction of a leader begins with too.
func (r *records) termIs(host int, term int64) bool {
	l, _ := r.leader.last()
	return l.by == host && l.created == term
}

// renew is store.Writer.Renew. A renewal compares the revision of the one before it, as far as this writer knows: one that was delayed under
// way must not follow a later one, since that may have been of a longer lease, and the observer would wait for the shorter.
func (r *records) renew(host int, epoch, sequence uint64, renewal aliveRecord) error {
	if !r.epochIs(host, epoch) {
		return errEpoch
	}
	if old, rev := r.alive[host].last(); rev != 0 && old.Sequence>>32 == epoch && old.Sequence&(1<<32-1) >= sequence && !defect.Seeded.RenewalsReorder() {
		return errConflict
	}
	rev := r.next()
	renewal.Revision, renewal.Sequence = rev, epoch<<32|sequence
	r.alive[host].put(rev, renewal)
	return nil
}

// fence is store.Term.Fence.
func (r *records) fence(leader int, term int64, host int, revision int64) error {
	if !r.termIs(leader, term) {
		return errTerm
	}
	e, _ := r.epoch[host].last()
	_, rev := r.alive[host].last()
	switch {
	case e.Fenced:
		return nil
	case rev != revision && !defect.Seeded.FenceUncompared():
		return errConflict
	}
	e.Epoch, e.Fences, e.Fenced = e.Epoch+1, e.Fences+1, true
	r.epoch[host].put(r.next(), e)
	return nil
}

// reassign is store.Term.Reassign: dead are the hosts that must be dead still; change says no to a record that is not what was decided on.
func (r *records) reassign(leader int, term int64, vm int, dead []inventory.HostID, change func(*inventory.VMRun, *inventory.VMPlace) error) error {
	if !r.termIs(leader, term) {
		return errTerm
	}
	run, _ := r.run[vm].last()
	place, _ := r.place[vm].last()
	for _, h := range dead {
		if e, _ := r.epoch[number(h)].last(); !run.Dead(h, e.sign()) && !defect.Seeded.CachedRestarts() {
			return errConflict
		}
	}
	if err := change(&run, &place); err != nil {
		return err
	}
	rev := r.next()
	r.run[vm].put(rev, run)
	r.place[vm].put(rev, place)
	return nil
}
