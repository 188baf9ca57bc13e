package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/ha"
)

// Discards asks a heir for its final word on a migration whose source is dead.
type Discards interface {
	// Discard returns true when the heir has discarded, for good, and false when it has the VM and will say so in the store by itself.
	// The call carries the term's number, and a heir that knows of a later term refuses it. It may be repeated.
	Discard(ctx context.Context, heir inventory.HostID, id inventory.MigrationID, source inventory.HostID, term uint64) (bool, error)
}

// Recoverer is the loop that gives the VMs of dead hosts new owners, and those that a living one could not start: those that are wanted on start
// there, the others can be started there.
// policy/ha decides; the transaction compares everything that the decision stands on (store.Term.Reassign). A VM that cannot be
// started again has a word in its place record why not. It never starts a VM itself, and never touches one whose power-off was
// acknowledged but for its owner.
type Recoverer struct {
	Heirs Discards
	Log   *slog.Logger
}

// The times of the loop.
const (
	recoverSoon = 250 * time.Millisecond // while something waits: a VM that is blocked, a heir that does not answer; twice as long each time
	recoverSlow = 5 * time.Second        // up to this
	recoverRare = time.Minute            // otherwise, beside every change of a host
	grantCounts = 15 * time.Second       // a VM that was given to a host is in that host's own figures by then
	discardMax  = 3 * time.Second        // for a heir's answer
	discardsMax = 16                     // asked at once
)

// Name implements Loop.
func (r *Recoverer) Name() string { return "recover" }

// Run implements Loop.
func (r *Recoverer) Run(ctx context.Context, term *store.Term) error {
	ctx, end := context.WithCancel(ctx)
	changes := term.Store().Watch(ctx, store.Hosts)
	defer func() {
		end()
		for range changes { // until the watch has ended
			continue
		}
	}()
	p := pass{Recoverer: r, term: term}
	soon := recoverSoon
	for {
		waits, err := p.run(ctx)
		if over(err) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			r.Log.LogAttrs(ctx, slog.LevelWarn, "vms of dead hosts not dealt with", slog.Any("err", err))
		}
		pause := recoverRare
		if waits || err != nil {
			pause = soon
			soon = min(2*soon, recoverSlow)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changes:
			soon = recoverSoon
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// pass is what a Recoverer knows in one term: read anew each time, but for what it gave away a moment ago.
type pass struct {
	*Recoverer

	term     *store.Term
	hosts    []inventory.Host
	renewals map[inventory.HostID]inventory.Renewal
	leaving  map[inventory.HostID]bool // the hosts that are to leave the cluster: they get no VMs
	granted  []grant
}

// grant is a VM that was given to a host which may not have started it yet.
type grant struct {
	host   inventory.HostID
	memory inventory.Bytes
	at     time.Time
}

// run looks at every VM once. It reports whether something waits for what no change of a host will tell; a VM that was given away a moment ago does,
// as its new host may give it up.
func (p *pass) run(ctx context.Context) (waits bool, err error) {
	p.granted = slices.DeleteFunc(p.granted, func(g grant) bool { return time.Since(g.at) > grantCounts })
	s := p.term.Store()
	renewals, err := s.Renewals(ctx)
	if err != nil {
		return true, err
	}
	p.renewals = map[inventory.HostID]inventory.Renewal{}
	for _, r := range renewals {
		p.renewals[r.Host] = r
	}
	if p.hosts, err = s.Hosts(ctx); err != nil {
		return true, err
	}
	removals, err := s.Removals(ctx)
	if err != nil {
		return true, err
	}
	p.leaving = map[inventory.HostID]bool{}
	for _, r := range removals {
		p.leaving[r.Host] = true
	}
	vms, err := s.VMs(ctx)
	if err != nil {
		return true, err
	}
	var ask []inventory.VM
	for _, vm := range vms {
		waiting, discard, err := p.look(ctx, vm)
		if over(err) {
			return true, err
		}
		if err != nil {
			p.Log.LogAttrs(ctx, slog.LevelWarn, "vm not dealt with", slog.String("vm", vm.Spec.Name), slog.Any("err", err))
		}
		waits = waits || waiting || err != nil
		if discard {
			ask = append(ask, vm)
		}
	}
	p.askHeirs(ctx, ask)
	return waits || len(ask) > 0 || len(p.granted) > 0, p.endMigrations(ctx)
}

// sign is what the renewals say of a host's life.
func (p *pass) sign(id inventory.HostID) inventory.Sign {
	r, member := p.renewals[id]
	return inventory.Sign{Removed: !member, Fenced: r.Fenced, BootID: r.BootID}
}

// life says what is known of a host.
func (p *pass) life(id inventory.HostID) ha.Life {
	if p.sign(id).Dead() {
		return ha.Dead // one that was removed from the cluster is as dead: its removal says so
	}
	for _, h := range p.hosts {
		if h.ID == id && (h.Standing.State == string(authority.Silent) || h.Standing.State == string(authority.Blocked)) {
			return ha.Silent
		}
	}
	return ha.Living
}

// kase gathers what the decision about a VM stands on.
func (p *pass) kase(ctx context.Context, run inventory.VMRun, discarded bool) (ha.Case, error) {
	c := ha.NewCase(run, p.life, p.sign(run.Heir.Host))
	c.HeirDiscarded = discarded
	if !c.AsksOwner() {
		return c, nil
	}
	m, err := p.term.Store().Migration(ctx, run.Heir.Migration)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return c, err
	}
	c.OwnerDiscarded = m.Status.SourceDiscarded
	return c, nil
}

// look decides about one VM and does it. discard says that its heir is to be asked.
func (p *pass) look(ctx context.Context, vm inventory.VM) (waits, discard bool, err error) {
	if vm.Run.Owner == "" || p.life(vm.Run.Owner) == ha.Living && vm.Run.Heir.IsZero() && !vm.Run.OwnerGaveUp() {
		return false, false, p.block(ctx, vm, "")
	}
	c, err := p.kase(ctx, vm.Run, false)
	if err != nil {
		return true, false, err
	}
	switch d := ha.Decide(c); d.Kind {
	case ha.Leave:
		return false, false, p.block(ctx, vm, "")
	case ha.TellOwner:
		return true, false, nil // the owner's agent sees the heir's epoch as the leader does (control/migrate)
	case ha.Wait:
		return true, false, p.blockFor(ctx, vm, d.Wait)
	case ha.AskDiscard:
		return true, true, nil
	case ha.Restart, ha.Release:
		waits, err := p.give(ctx, vm, c, d)
		return waits, false, err
	}
	return false, false, fault.New(fault.Internal, "no such decision")
}

// blockFor says that a VM waits for a host that nobody can prove dead. While that host is silent for a short time only, nothing is said.
func (p *pass) blockFor(ctx context.Context, vm inventory.VM, host inventory.HostID) error {
	for _, h := range p.hosts {
		if h.ID == host && h.Standing.State == string(authority.Blocked) && vm.Run.Wanted == inventory.PowerOn {
			return p.block(ctx, vm, h.Standing.Why)
		}
	}
	return nil
}

// block writes why a VM is not started again; an empty reason takes back what was said.
func (p *pass) block(ctx context.Context, vm inventory.VM, why string) error {
	if vm.Place.Blocked == why {
		return nil
	}
	err := p.term.PutPlace(ctx, vm.ID, func(place *inventory.VMPlace) error {
		if place.Blocked != why {
			place.Blocked, place.Since = why, time.Now()
		}
		if why == "" {
			place.Since = time.Time{}
		}
		return nil
	})
	if fault.Is(err, fault.NotFound) {
		return nil // destroyed meanwhile
	}
	return err
}

// errElse says that the VM is not any more as it was when the decision was taken.
var errElse = errors.New("the VM has changed meanwhile")

// give makes another host owner of the VM.
func (p *pass) give(ctx context.Context, vm inventory.VM, c ha.Case, d ha.Decision) (waits bool, err error) {
	to, reasons := ha.Choose(p.candidates(vm, d.Kind == ha.Release))
	if to == "" {
		if d.Kind == ha.Release {
			return true, nil // off it harms nobody: it waits for a host that could start it
		}
		return true, p.block(ctx, vm, ha.NoHost(reasons))
	}
	why := p.why(ctx, vm.Run, c)
	text := fmt.Sprintf("%s: %s is its host now, and starts it as generation %d", why, to, d.Generation)
	if d.Kind == ha.Release {
		text = fmt.Sprintf("%s: %s is its host now; it is off and stays off", why, to)
	}
	e := event(vmReassigned, string(vm.ID), text)
	e.ObjectName = vm.Spec.Name
	_, err = p.term.Reassign(ctx, vm.ID, c.Dead(), func(run *inventory.VMRun, place *inventory.VMPlace) error {
		if *run != vm.Run {
			return errElse // also a power-off that was acknowledged since: it is never undone
		}
		*run, *place = d.Give(*run, *place, to, why, time.Now())
		return nil
	}, e)
	switch {
	case over(err):
		return true, err
	case errors.Is(err, errElse), fault.Is(err, fault.Conflict), fault.Is(err, fault.NotFound):
		return true, nil // the next look decides anew
	case err != nil:
		return true, err
	}
	p.Log.LogAttrs(ctx, slog.LevelWarn, "vm has a new owner", slog.String("vm", vm.Spec.Name), slog.String("host", string(to)),
		slog.Uint64("generation", uint64(d.Generation)), slog.String("why", why))
	if d.Kind == ha.Restart {
		p.granted = append(p.granted, grant{to, vm.Spec.Memory, time.Now()})
	}
	return false, nil
}

// why says in one line what became of the VM's hosts.
func (p *pass) why(ctx context.Context, run inventory.VMRun, c ha.Case) string {
	host := run.Owner
	switch {
	case c.Owner == ha.Living && run.Heir.IsZero():
		return string(host) + " could not start it"
	case c.Owner != ha.Dead:
		host = run.Heir.Host // the owner gave its copy up when the heir was lost
	}
	epoch, err := p.term.Store().Epoch(ctx, host)
	switch {
	case err != nil:
		return string(host) + " is not in the cluster any more"
	case !epoch.Fenced:
		return string(host) + " was booted in the middle of a migration"
	}
	return string(host) + " is dead: " + epoch.Why
}
