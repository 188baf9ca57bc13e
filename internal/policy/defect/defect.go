// Package defect holds the mistakes that the simulator must find. Each is a method of Seeded that says no; a file with the build tag
// defect_NAME makes it say yes, and the rule that asks it is then broken. A program that is built without such a tag has none of
// it: the compiler drops what depends on them. `make defects` builds each and demands that the simulator finds it.
//
// Only policy, the simulator and the few lines of control that carry a rule out ask it.
package defect

// Seeded says which defects this program was built with.
var Seeded seeded

// none says no to every defect. A tagged file gives seeded a method of the same name, which then counts instead.
type none struct{}

// seeded is none with what the build tags add.
type seeded struct{ none }

// FenceUncompared fences without comparing the renewal that was seen last.
func (none) FenceUncompared() bool { return false }
