//go:build defect_returned_ignored

package defect

func init() { Names = append(Names, "returned_ignored") }

// ReturnedIgnored is seeded.
func (seeded) ReturnedIgnored() bool { return true }
