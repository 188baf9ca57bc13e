//go:build defect_plan_promises_watchdog

package defect

func init() { Names = append(Names, "plan_promises_watchdog") }

// PlanPromisesWatchdog is seeded.
func (seeded) PlanPromisesWatchdog() bool { return true }
