//go:build defect_old_generation

package defect

func init() { Names = append(Names, "old_generation") }

// OldGeneration is seeded.
func (seeded) OldGeneration() bool { return true }
