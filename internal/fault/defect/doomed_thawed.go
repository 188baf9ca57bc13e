//go:build defect_doomed_thawed

package defect

func init() { Names = append(Names, "doomed_thawed") }

// DoomedThawed is seeded.
func (seeded) DoomedThawed() bool { return true }
