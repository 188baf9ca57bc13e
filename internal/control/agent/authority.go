package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/certificate"
	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Warden is the host's warden, as the agent speaks to it: what of the authority it must know to end VMs that the agent does not.
// control/warden's Line implements it. Each call returns when the warden has taken the word, or with an error when it has not in time.
type Warden interface {
	// Authority says until when this host's authority lasts, under which fence count.
	Authority(ctx context.Context, fences uint64, until authority.Moment) error
	// Shorten says that it lasts no longer than until.
	Shorten(ctx context.Context, until authority.Moment) error
	// GiveUp says that this host's epoch is over.
	GiveUp(ctx context.Context) error
	// VM says who arbitrates the storage of a VM that has a QEMU here, and whether its vCPUs stand: after QEMU has acknowledged that, and
	// before it lets them run.
	VM(ctx context.Context, id inventory.VMID, arbiter authority.Arbiter, stopped bool) error
	// Stands says that a VM's vCPUs stand, as VM does, where only the warden knows who arbitrates its storage.
	Stands(ctx context.Context, id inventory.VMID) error
	// Gone says that a VM has no QEMU here any more.
	Gone(ctx context.Context, id inventory.VMID) error
	// Cleared returns when nothing lives any more of what was here under an earlier fence count. The first Authority comes before it.
	Cleared(ctx context.Context) error
	// Unwatched says that the store has this host's word that nobody can fence it (a renewal with FencedByNobody was acknowledged): with that the
	// warden takes its watchdog off when it ends in order. Without it, it ends only when every VM on lease-arbitrated storage is frozen
	// after a stop, or dead.
	Unwatched(ctx context.Context) error
	// Left returns the authority that the warden knows of, 0 for none: what this agent's predecessor had.
	Left() (fences uint64, until authority.Moment)
	// Fencing says how others can know that this host's VMs are dead when it falls silent. It may change from one call to the next.
	Fencing() inventory.Fencing
}

// AuthorityConfig is what Claim needs.
type AuthorityConfig struct {
	Host     inventory.HostID
	Identity *peer.Identity
	Store    *store.Store // for renewals alone, which wait behind nobody else's calls
	Warden   Warden
	Settings authority.Settings
	RunDir   string
	Log      *slog.Logger
}

// Authority is a host's right to run its VMs, kept by renewals since Claim. Its methods may be called by many goroutines.
type Authority struct {
	*renewer

	epoch  store.Epoch // of this agent
	before store.Epoch // as it was
	boot   string
	was    adopted // as the last agent that took in what is here has noted it
	cast   bool    // VMs that are here from before may have been given to others meanwhile
	runDir string
	end    context.CancelFunc
	ended  chan struct{}
}

// endMax bounds how long an agent that ends waits for the lease of its planned restart.
const endMax = time.Second

// Claim begins a new epoch of the host and renews its authority from then on, until End. It is the first thing that a starting agent does: what
// its predecessor has left of its authority runs out meanwhile. It fails when the store does not answer.
func Claim(ctx context.Context, c AuthorityConfig) (*Authority, error) {
	boot, err := host.BootID()
	if err != nil {
		return nil, err
	}
	old, err := c.Store.Epoch(ctx, c.Host)
	switch {
	case err != nil && !fault.Is(err, fault.NotFound): // that one never started an agent
		return nil, err
	case err == nil && old.Restored:
		if err := noteRestored(c.RunDir); err != nil {
			return nil, err
		}
	}
	now, before, err := certificate.Begin(ctx, c.Store, c.Host, c.Identity, boot)
	if err != nil {
		return nil, err
	}
	until := authority.Moment(0)
	if fences, left := c.Warden.Left(); fences == now.Fences && !before.Fenced {
		until = left
	}
	a := &Authority{
		renewer: newRenewer(c, c.Store.As(c.Host, now.Epoch).Renew, host.Boottime, authority.NewAgent(c.Settings, now.Fences, until, host.Boottime())),
		epoch:   now, before: before, boot: boot, runDir: c.RunDir, ended: make(chan struct{}),
	}
	if err := a.recall(); err != nil {
		return nil, err
	}
	// It goes on until End, since VMs may need it while the agent ends.
	within, end := context.WithCancel(context.WithoutCancel(ctx))
	a.end = end
	go func() { // ends with End, or with the authority
		defer close(a.ended)
		a.run(within)
	}()
	return a, nil
}

func newRenewer(c AuthorityConfig, renew func(context.Context, time.Duration, inventory.Fencing) error, now func() authority.Moment, m authority.Agent) *renewer {
	return &renewer{
		settings: c.Settings, now: now, renew: renew, warden: c.Warden, log: c.Log, machine: m,
		events: make(chan authority.AgentEvent), words: make(chan word, wordsMax), changed: make(chan struct{}),
	}
}

// Left is how long VMs may still run here; zero or less: they may not.
func (a *Authority) Left() time.Duration { return a.left() }

// rebooted reports whether the machine was booted since an agent of the host took in what is here. The one that began before this agent may
// have failed before it came to that, and has overwritten the boot in the store.
func (a *Authority) rebooted() bool {
	switch {
	case a.was.boot != "":
		return a.was.boot != a.boot
	case !a.was.known:
		return a.before.Epoch > 0 // the note went with the run directory
	}
	before := strings.TrimSpace(a.before.BootID) // older agents wrote the line's end too
	return before != "" && before != a.boot
}

// Epoch returns the number of this agent's epoch.
func (a *Authority) Epoch() uint64 { return a.epoch.Epoch }

// End obtains the lease of a planned restart, if the store gives it within a second, and ends the renewals. From then on nobody here stops VMs, so
// the last renewal says that nobody fences this host, unless none runs on.
func (a *Authority) End(ctx context.Context) {
	within, done := context.WithTimeout(context.WithoutCancel(ctx), endMax)
	defer done()
	err := a.plan(within, a.runsOn)
	if err == nil && a.runsOn() {
		err = a.unwatched(within)
	}
	if err != nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "no longer authority for the restart", slog.Any("err", err))
	}
	a.end()
	<-a.ended
}

// runsOn reports whether a QEMU is here that an agent which ends leaves behind.
func (a *Authority) runsOn() bool {
	dirs, err := os.ReadDir(filepath.Join(a.runDir, "vms"))
	return err != nil && !os.IsNotExist(err) || len(dirs) > 0
}

// adopted is what an agent notes when it has taken in what is here. It is on tmpfs, as the run directories of the VMs are, and goes with them.
type adopted struct {
	known  bool   // there is a note of this boot
	fences string // under which the VMs run that are here
	boot   string // empty: of an agent that did not note it
	// cut are the migrations that were open when the machine was booted, and are still: their journals are lost.
	cut map[inventory.MigrationID]bool
}

// The files of the note. Agents before this one wrote the fence count alone, in a file of its own.
func (a *Authority) adoptedFile() string { return filepath.Join(a.runDir, "adopted") }
func (a *Authority) fencesFile() string  { return filepath.Join(a.runDir, "fences") }

// recall reads the note, and finds out whether the host was fenced since the VMs that are here were taken in.
func (a *Authority) recall() error {
	a.cast, a.was = a.before.Fenced, adopted{cut: map[inventory.MigrationID]bool{}}
	text, err := os.ReadFile(a.adoptedFile())
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(a.fencesFile())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Internal, "note of what was taken in: %w", err)
	}
	a.was.known = true
	fields := strings.Fields(string(text))
	if len(fields) > 0 {
		a.was.fences = fields[0]
	}
	if len(fields) > 1 {
		a.was.boot = fields[1]
		for _, id := range fields[2:] {
			a.was.cut[inventory.MigrationID(id)] = true
		}
	}
	// One that was torn by a crash is another count too.
	a.cast = a.was.fences != strconv.FormatUint(a.epoch.Fences, 10)
	return nil
}

// settle notes that what is here was taken in, and nothing is left of an earlier fence count. cut are the migrations whose journals were lost.
func (a *Authority) settle(cut map[inventory.MigrationID]bool) error {
	a.cast = false
	note := []string{strconv.FormatUint(a.epoch.Fences, 10), a.boot}
	for id := range cut {
		note = append(note, string(id))
	}
	err := os.WriteFile(a.adoptedFile()+".new", []byte(strings.Join(note, " ")), 0o600)
	if err == nil {
		err = os.Rename(a.adoptedFile()+".new", a.adoptedFile())
	}
	if err != nil {
		return fault.New(fault.NoResources, "note of what was taken in: %w", err)
	}
	return nil
}

// noteRestored notes that the host's record comes from a backup, before the new epoch takes that out of the store: what runs here is to be looked
// through until an agent has done that to its end. The note is on tmpfs, since it is about processes of this boot.
func noteRestored(runDir string) error {
	if err := os.WriteFile(restoredFile(runDir), nil, 0o600); err != nil {
		return fault.New(fault.NoResources, "note of the store's restore: %w", err)
	}
	return nil
}

func restoredFile(runDir string) string { return filepath.Join(runDir, "restored") }

// restored reports whether what runs here is still to be compared with the lock records, since the store was restored from a backup.
func (a *Authority) restored() bool {
	_, err := os.Stat(restoredFile(a.runDir))
	return a.before.Restored || !errors.Is(err, fs.ErrNotExist)
}

// restoredSettled notes that it was.
func (a *Authority) restoredSettled() error {
	if err := os.Remove(restoredFile(a.runDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Internal, "note of the store's restore: %w", err)
	}
	return nil
}

// clear waits until this host has authority, and until the warden has ended what was here under an earlier fence count. starting is told now and then
// that this goes on. Only then may VMs be taken in.
func (a *Authority) clear(ctx context.Context, starting func(string)) error {
	for _, wait := range []struct {
		what string
		f    func(context.Context) error
	}{
		{"renews this host's authority", func(ctx context.Context) error { return a.await(ctx, time.Nanosecond) }},
		{"waits for the end of vms that this host has lost", a.warden.Cleared},
	} {
		for {
			starting(wait.what)
			within, done := context.WithTimeout(ctx, clearMax)
			err := wait.f(within)
			done()
			if err == nil {
				break
			}
			if _, _, over := a.standstill(); over != nil {
				return over
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.log.LogAttrs(ctx, slog.LevelWarn, "no vm is taken in yet", slog.String("step", wait.what), slog.Any("err", err))
			rest(ctx, againAfter)
		}
	}
	return nil
}

// clearMax bounds one wait of clear, so that the warden hears in between that this agent starts; againAfter is the pause before the next.
const (
	clearMax   = 10 * time.Second
	againAfter = 200 * time.Millisecond
)

// rest waits, unless ctx ends before.
func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}
