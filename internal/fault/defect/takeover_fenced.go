//go:build defect_takeover_fenced

package defect

func init() { Names = append(Names, "takeover_fenced") }

// TakeoverFenced is seeded.
func (seeded) TakeoverFenced() bool { return true }
