//go:build defect_restart_outlives

package defect

func init() { Names = append(Names, "restart_outlives") }

// RestartOutlives is seeded.
func (seeded) RestartOutlives() bool { return true }
