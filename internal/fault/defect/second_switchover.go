//go:build defect_second_switchover

package defect

func init() { Names = append(Names, "second_switchover") }

// SecondSwitchover is seeded.
func (seeded) SecondSwitchover() bool { return true }
