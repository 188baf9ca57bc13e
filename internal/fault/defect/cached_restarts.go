//go:build defect_cached_restarts

package defect

func init() { Names = append(Names, "cached_restarts") }

// CachedRestarts is seeded.
func (seeded) CachedRestarts() bool { return true }
