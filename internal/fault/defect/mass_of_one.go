//go:build defect_mass_of_one

package defect

func init() { Names = append(Names, "mass_of_one") }

// MassOfOne is seeded.
func (seeded) MassOfOne() bool { return true }
