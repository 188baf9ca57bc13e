package sim

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// rateMax is how much faster or slower than real time a clock runs at most, in millionths: the limit of adjtimex(2).
const rateMax = 500

// clock is a machine's idea of time since it booted: it drifts, and counts suspended time too (CLOCK_BOOTTIME). The wall clock
// is the same one, set and jumped by people.
type clock struct {
	booted moment // when, in real time
	rate   int64  // millionths faster than real time
	wall   time.Duration
}

// boot returns CLOCK_BOOTTIME; where a defect says so, the wall clock in its place.
func (c *clock) boot(now moment) authority.Moment {
	t := now - c.booted
	t += time.Duration(int64(t) / 1e6 * c.rate)
	if defect.Seeded.WallClock() {
		t += c.wall
	}
	return t + time.Hour // a machine has been on for a while, and 0 means never
}

// real returns how much real time a duration of this clock takes.
func (c *clock) real(d time.Duration) time.Duration {
	return d - time.Duration(int64(d)/1e6*c.rate)
}
