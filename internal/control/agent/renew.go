package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

const (
	// wardenMax bounds one word to the warden. Without its answer nothing unsafe follows: the authority is then shorter than it could be.
	wardenMax = 500 * time.Millisecond
	// hurryMax bounds how long the warden's words wait for the loop to take news.
	hurryMax = 100 * time.Millisecond
	// wordsMax bounds the words that wait for a warden that does not listen.
	wordsMax = 16
)

// renewer drives authority.Agent: it has renewals sent, tells the warden, and says when VMs are to stop and may run on. Nothing that it waits for
// holds it up: renewals, words to the warden and the work on VMs are done beside its loop. Run is called once, the other methods by anyone.
//
//	tick, outcome, plan ─► loop ─► authority.Agent ─┬─► renewal (one at a time) ─► outcome
//	                                                ├─► words to the warden, in order
//	                                                └─► standstill: what VMs are to do, for Standstill's followers
type renewer struct {
	settings authority.Settings
	now      func() authority.Moment // CLOCK_BOOTTIME
	renew    func(ctx context.Context, lease time.Duration, fencing inventory.Fencing) error
	warden   Warden
	log      *slog.Logger

	events chan authority.AgentEvent
	words  chan word

	mu      sync.Mutex
	machine authority.Agent
	stopped bool              // VMs are to stand
	resumed authority.Moment  // when they were let run on last
	fenced  inventory.Fencing // as the last renewal said
	ending  func() bool       // not nil: this host ends in order; it says whether VMs run on
	over    error             // why the authority is over for good
	last    error             // of the last renewal; nil: it was acknowledged
	changed chan struct{}     // closed and replaced when one of the above, or what Left counts from, changes
}

// word is one thing for the warden, said in the order in which it was decided.
type word struct {
	say  func(context.Context) error
	done chan<- error // nil: nobody waits
}

// run keeps the authority until ctx ends or it is over for good.
func (r *renewer) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	all.Go(func() { r.speak(ctx) })
	for {
		r.step(ctx, &all, authority.AgentEvent{Kind: authority.AgentTick})
		r.mu.Lock()
		over, next := r.over, r.machine.NextTick()
		r.mu.Unlock()
		if over != nil {
			r.giveUp(ctx)
			return
		}
		var due <-chan time.Time
		if next != authority.Never {
			due = time.After(next - r.now())
		}
		select {
		case <-ctx.Done():
			return
		case <-due:
		case e := <-r.events:
			r.step(ctx, &all, e)
		}
	}
}

// unwatched tells the warden, after all that was to be said before, that the store knows that nobody can fence this host.
func (r *renewer) unwatched(ctx context.Context) error { return r.ask(ctx, r.warden.Unwatched) }

// ask says a word after those that wait, and waits for what becomes of it.
func (r *renewer) ask(ctx context.Context, what func(context.Context) error) error {
	heard := make(chan error, 1)
	select {
	case r.words <- word{what, heard}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-heard:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// giveUp tells the warden that the authority is over, after all that was to be said before: a longer authority that came later would count.
func (r *renewer) giveUp(ctx context.Context) {
	within, done := context.WithTimeout(ctx, 2*wardenMax)
	defer done()
	err := r.ask(within, r.warden.GiveUp)
	if err != nil {
		r.log.LogAttrs(ctx, slog.LevelError, "the warden does not hear that the authority is over", slog.Any("err", err))
	}
}

// step gives the machine one event and does what it answers.
func (r *renewer) step(ctx context.Context, all *sync.WaitGroup, e authority.AgentEvent) {
	e.Now = r.now()
	r.mu.Lock()
	next, actions := r.machine.Step(e)
	r.machine = next
	var shortened chan error
	changed := e.Kind != authority.AgentTick
	for _, a := range actions {
		switch a.Kind {
		case authority.TellWarden:
			r.say(func(ctx context.Context) error { return r.warden.Authority(ctx, a.Fences, a.Until) }, nil)
		case authority.ShortenWarden:
			shortened = make(chan error, 1)
			r.say(func(ctx context.Context) error { return r.warden.Shorten(ctx, a.Until) }, shortened)
		case authority.Renew:
			fencing := r.fencing()
			r.fenced = fencing
			all.Go(func() { r.send(ctx, a, fencing, shortened) })
		case authority.StopVMs:
			r.stopped, changed = true, true
		case authority.ResumeVMs:
			r.stopped, r.resumed, changed = false, e.Now, true
		case authority.GiveUp:
			r.over = r.last
		}
	}
	if changed {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	r.mu.Unlock()
}

// fencing is what the next renewal says. A host that ends in order leaves nobody behind who would feed a watchdog, or stop VMs.
func (r *renewer) fencing() inventory.Fencing {
	if r.ending != nil && r.ending() {
		return inventory.FencedByNobody
	}
	return r.warden.Fencing()
}

// send does one renewal and tells the loop what became of it.
func (r *renewer) send(ctx context.Context, a authority.AgentAction, fencing inventory.Fencing, shortened <-chan error) {
	within, done := context.WithTimeout(ctx, r.settings.RenewTimeout-(r.now()-a.Sent))
	defer done()
	var err error
	unsent := false
	if shortened != nil {
		select {
		case err = <-shortened:
		case <-within.Done():
			err = fault.New(fault.Unavailable, "the warden does not answer")
		}
		unsent = err != nil
	}
	if err == nil {
		err = r.renew(within, a.Lease, fencing)
	}
	e := authority.AgentEvent{Kind: authority.RenewalAcked, Sent: a.Sent, Lease: a.Lease}
	switch {
	case err == nil:
	case errors.Is(err, store.ErrEpochOver) && !errors.Is(err, store.ErrRestored): // after a restore nobody has declared this host dead: its VMs stand until its agent starts anew
		e.Kind = authority.EpochOver
	default:
		e.Kind, e.Unsent = authority.RenewalFailed, unsent
	}
	r.note(ctx, err)
	select {
	case r.events <- e:
	case <-ctx.Done():
	}
}

// note keeps what became of the last renewal, and logs when that changes.
func (r *renewer) note(ctx context.Context, err error) {
	r.mu.Lock()
	before := r.last
	r.last = err
	r.mu.Unlock()
	switch {
	case err != nil && before == nil && ctx.Err() == nil:
		r.log.LogAttrs(ctx, slog.LevelWarn, "authority not renewed", slog.Any("err", err))
	case err == nil && before != nil:
		r.log.LogAttrs(ctx, slog.LevelInfo, "authority renewed again", slog.Duration("left", r.left()))
	}
}

// say hands a word to speak. One that finds no room is lost, as if the warden had not answered: it then knows of a shorter authority
// than there is, which is safe, and a renewal that needed its answer is not sent.
func (r *renewer) say(what func(context.Context) error, done chan<- error) {
	select {
	case r.words <- word{what, done}:
	default:
		if done != nil {
			done <- fault.New(fault.Unavailable, "the warden does not listen")
		}
	}
}

// speak says the words to the warden, one after the other.
func (r *renewer) speak(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-r.words:
			within, done := context.WithTimeout(ctx, wardenMax)
			err := w.say(within)
			done()
			if w.done != nil {
				w.done <- err
			} else if err != nil && ctx.Err() == nil {
				r.log.LogAttrs(ctx, slog.LevelWarn, "the warden does not take the authority's end", slog.Any("err", err))
			}
			if err == nil {
				r.hurry(ctx)
			}
		}
	}
}

// hurry has the next renewal sent at once if it has another word on fencing than the last: a warden arms its watchdog only when it knows of an
// authority, and a host that dies before it has said so blocks its VMs.
func (r *renewer) hurry(ctx context.Context) {
	r.mu.Lock()
	news := r.fencing() != r.fenced
	r.mu.Unlock()
	if !news {
		return
	}
	select {
	case r.events <- authority.AgentEvent{Kind: authority.RenewNow}:
	case <-time.After(hurryMax): // the loop is about to give up, and waits for this goroutine; or the next second will do
	case <-ctx.Done():
	}
}

// left is how long VMs may still run here; zero or less: they may not.
func (r *renewer) left() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine.Left(r.now())
}

// standstill returns whether VMs are to stand, and a channel that is closed when that changes, or a renewal's outcome is there. An error says why
// the authority is over for good.
func (r *renewer) standstill() (stopped bool, changed <-chan struct{}, over error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopped, r.changed, r.over
}

// lately reports whether VMs stand for want of authority, or did a moment ago.
func (r *renewer) lately() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopped || r.resumed != 0 && r.now()-r.resumed < r.settings.Lease
}

// trouble returns why the last renewal was not done, nil when it was.
func (r *renewer) trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// await waits until VMs may run here for at least that long; an error says why not, when the authority is over for good or ctx ends.
func (r *renewer) await(ctx context.Context, least time.Duration) error {
	for {
		r.mu.Lock()
		left, over, last, changed := r.machine.Left(r.now()), r.over, r.last, r.changed
		r.mu.Unlock()
		switch {
		case over != nil:
			return over
		case left >= least:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if last != nil {
				return fault.New(fault.Unavailable, "this host's authority was not renewed: %w", last)
			}
			return ctx.Err()
		}
	}
}

// plan obtains the lease of a planned restart, if the store gives it before ctx ends. onward says, at each renewal from now on, whether VMs
// run on without anybody who could end them.
func (r *renewer) plan(ctx context.Context, onward func() bool) error {
	r.mu.Lock()
	r.ending = onward
	over := r.over
	r.mu.Unlock()
	if over != nil {
		return over
	}
	select {
	case r.events <- authority.AgentEvent{Kind: authority.PlanRestart}:
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.await(ctx, r.settings.Planned-(r.settings.Lease-r.settings.Stop)-r.settings.RenewTimeout)
}
