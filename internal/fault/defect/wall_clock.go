//go:build defect_wall_clock

package defect

func init() { Names = append(Names, "wall_clock") }

// WallClock is seeded.
func (seeded) WallClock() bool { return true }
