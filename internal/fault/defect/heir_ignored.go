//go:build defect_heir_ignored

package defect

func init() { Names = append(Names, "heir_ignored") }

// HeirIgnored is seeded.
func (seeded) HeirIgnored() bool { return true }
