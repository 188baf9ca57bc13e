//go:build defect_kill_not_awaited

package defect

func init() { Names = append(Names, "kill_not_awaited") }

// KillNotAwaited is seeded.
func (seeded) KillNotAwaited() bool { return true }
