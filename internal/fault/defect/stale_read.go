//go:build defect_stale_read

package defect

func init() { Names = append(Names, "stale_read") }

// StaleRead is seeded.
func (seeded) StaleRead() bool { return true }
