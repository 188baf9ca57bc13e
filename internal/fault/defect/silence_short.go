//go:build defect_silence_short

package defect

func init() { Names = append(Names, "silence_short") }

// SilenceShort is seeded.
func (seeded) SilenceShort() bool { return true }
