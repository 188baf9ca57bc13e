//go:build defect_release_on_timeout

package defect

func init() { Names = append(Names, "release_on_timeout") }

// ReleaseOnTimeout is seeded.
func (seeded) ReleaseOnTimeout() bool { return true }
