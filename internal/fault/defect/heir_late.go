//go:build defect_heir_late

package defect

func init() { Names = append(Names, "heir_late") }

// HeirLate is seeded.
func (seeded) HeirLate() bool { return true }
