//go:build defect_resume_lost_epoch

package defect

func init() { Names = append(Names, "resume_lost_epoch") }

// ResumeLostEpoch is seeded.
func (seeded) ResumeLostEpoch() bool { return true }
