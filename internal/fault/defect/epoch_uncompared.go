//go:build defect_epoch_uncompared

package defect

func init() { Names = append(Names, "epoch_uncompared") }

// EpochUncompared is seeded.
func (seeded) EpochUncompared() bool { return true }
