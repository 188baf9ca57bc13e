//go:build defect_fence_uncompared

package defect

// FenceUncompared is seeded.
func (seeded) FenceUncompared() bool { return true }
