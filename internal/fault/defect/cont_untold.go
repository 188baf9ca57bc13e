//go:build defect_cont_untold

package defect

func init() { Names = append(Names, "cont_untold") }

// ContUntold is seeded.
func (seeded) ContUntold() bool { return true }
