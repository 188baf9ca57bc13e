//go:build defect_pull_source_killed

package defect

func init() { Names = append(Names, "pull_source_killed") }

// PullSourceKilled is seeded.
func (seeded) PullSourceKilled() bool { return true }
