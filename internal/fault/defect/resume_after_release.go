//go:build defect_resume_after_release

package defect

func init() { Names = append(Names, "resume_after_release") }

// ResumeAfterRelease is seeded.
func (seeded) ResumeAfterRelease() bool { return true }
