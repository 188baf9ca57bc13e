//go:build defect_release_early

package defect

func init() { Names = append(Names, "release_early") }

// ReleaseEarly is seeded.
func (seeded) ReleaseEarly() bool { return true }
