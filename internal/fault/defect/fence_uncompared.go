//go:build defect_fence_uncompared

package defect

func init() { Names = append(Names, "fence_uncompared") }

// FenceUncompared is seeded.
func (seeded) FenceUncompared() bool { return true }
