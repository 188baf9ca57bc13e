//go:build defect_clear_not_awaited

package defect

func init() { Names = append(Names, "clear_not_awaited") }

// ClearNotAwaited is seeded.
func (seeded) ClearNotAwaited() bool { return true }
