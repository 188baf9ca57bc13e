//go:build defect_shorten_late

package defect

func init() { Names = append(Names, "shorten_late") }

// ShortenLate is seeded.
func (seeded) ShortenLate() bool { return true }
