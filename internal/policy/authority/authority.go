// Package authority decides how long a host may run its VMs: what its agent and its warden do when the host's authority ends, and when
// the cluster's leader may take its VMs away.
//
// It is three state machines, each a plain value: Agent (agent.go) renews the authority and stops VMs in time, Warden (warden.go)
// freezes or kills what the agent did not stop and feeds the watchdog with proof only, and Observer (observer.go), of the leader,
// says when a silent host may be fenced. The package has no clock, does no I/O and starts no goroutine: control/agent,
// control/warden and control/cluster feed events and do the actions, and the simulator does the same in virtual time.
//
// # Why two copies never run
//
// A renewal is a linearisable transaction that succeeds only while the host's epoch is the one it was given. The host counts
// its authority from a moment before it sent the renewal that was acknowledged (s), and stops everything by s + Lease on its own
// clock. The observer counts from the moment r at which it first saw that renewal, so r >= s, and fences at r + Silence(Lease) on its
// own clock by a transaction that succeeds only if no renewal came in between. Store order does the rest: either the renewal
// is first and the fence fails, or the fence is first and no renewal succeeds after it. With clocks whose rates differ by at
// most rho = 500 ppm (the limit of adjtimex(2)) this holds for Silence >= Lease*(1+rho)/(1-rho); we demand 1.05*Lease. No bound on the
// delay of a message is needed, and no clock is compared with another machine's.
package authority

import (
	"fmt"
	"math"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Moment is a moment on one machine's CLOCK_BOOTTIME, which counts suspended time too (clock_gettime(2)). Moments of two machines are
// never compared, stored or sent between machines.
type Moment = time.Duration

// VM names a VM to the machines of this package.
type VM = inventory.VMID

// Settings are the times of authority, each counted from the send of the last acknowledged renewal unless it says otherwise.
// Hosts of one cluster may differ in them: each renewal says how long it lasts.
type Settings struct {
	RenewEvery   time.Duration // from one renewal to the next
	RenewTimeout time.Duration // after which a renewal without an answer counts as failed
	Stop         time.Duration // the agent stops VMs on lease-arbitrated storage
	Freeze       time.Duration // the warden freezes those that were stopped and kills the others
	Reset        time.Duration // by now the watchdog has reset a machine whose warden could not prove that
	Watchdog     time.Duration // the watchdog's own timeout, from its last feeding
	Lease        time.Duration // the authority is over
	Silence      time.Duration // by the observer's clock, from its first sight of a renewal: the host may be fenced
	Planned      time.Duration // Lease of the renewal before a planned restart
	MassSilent   int           // percent of the hosts: when more than these, and more than one, are silent at once, each takes proof of its own
}

// Default returns the times in force unless the configuration says otherwise.
func Default() Settings {
	return Settings{
		RenewEvery: time.Second, RenewTimeout: 900 * time.Millisecond, Stop: 4 * time.Second, Freeze: 5 * time.Second,
		Reset: 7500 * time.Millisecond, Watchdog: 2 * time.Second, Lease: 8 * time.Second, Silence: 8500 * time.Millisecond,
		Planned: time.Minute, MassSilent: 30,
	}
}

// WatchdogGrain is how much later than asked a watchdog may fire: timers of hardware count seconds or half seconds.
const WatchdogGrain = 500 * time.Millisecond

// ProofMax is how old a proof may be with which the watchdog is fed: a warden may stand still between any two instructions, and what it saw is
// over then.
const ProofMax = 100 * time.Millisecond

// Problems lists what makes the settings unsafe or useless, with the arithmetic; nil: nothing.
func (s Settings) Problems() []string {
	var bad []string
	need := func(ok bool, format string, args ...any) {
		if !ok {
			bad = append(bad, fmt.Sprintf(format, args...))
		}
	}
	need(s.RenewEvery > 0 && s.RenewTimeout > 0, "renew-every %v and renew-timeout %v must be more than nothing", s.RenewEvery, s.RenewTimeout)
	need(s.RenewTimeout <= s.RenewEvery, "renew-timeout %v must not be above renew-every %v: one renewal at a time", s.RenewTimeout, s.RenewEvery)
	need(s.Stop >= 2*s.RenewEvery+s.RenewTimeout, "stop-after %v must be at least 2*renew-every + renew-timeout = %v: two lost renewals must not stop a VM", s.Stop, 2*s.RenewEvery+s.RenewTimeout)
	need(s.Freeze > s.Stop, "freeze-after %v must be above stop-after %v", s.Freeze, s.Stop)
	need(s.Reset >= s.Freeze+s.Watchdog+WatchdogGrain, "reset-after %v must be at least freeze-after + watchdog + %v = %v", s.Reset, WatchdogGrain, s.Freeze+s.Watchdog+WatchdogGrain)
	need(s.Watchdog >= time.Second || s.Watchdog == 0, "watchdog %v must be at least 1s: watchdogs count seconds", s.Watchdog)
	need(s.Lease > s.Reset, "lease %v must be above reset-after %v", s.Lease, s.Reset)
	need(s.Silence*100 >= s.Lease*105, "silence %v must be at least 1.05 * lease = %v: clocks may differ by that much", s.Silence, s.Lease*105/100)
	need(s.Planned >= s.Lease, "planned-lease %v must not be below lease %v", s.Planned, s.Lease)
	need(s.MassSilent > 0 && s.MassSilent <= 100, "mass-silent %d must be 1 to 100 percent", s.MassSilent)
	return bad
}

// SilenceFor returns how long an observer waits after its first sight of a renewal of this lease.
func (s Settings) SilenceFor(lease time.Duration) time.Duration {
	if lease <= s.Lease {
		lease = s.Lease
	}
	if defect.Seeded.SilenceShort() {
		return lease * 4 / 5
	}
	// Rounded up, so that a long lease keeps the proportion.
	return time.Duration(math.Ceil(float64(lease) / float64(s.Lease) * float64(s.Silence)))
}

// stopAt and freezeAt count back from the end of an authority, so that a longer lease moves both.
func (s Settings) stopAt(until Moment) Moment   { return until - (s.Lease - s.Stop) }
func (s Settings) freezeAt(until Moment) Moment { return until - (s.Lease - s.Freeze) }
