//go:build defect_owner_after_cont

package defect

func init() { Names = append(Names, "owner_after_cont") }

// OwnerAfterCont is seeded.
func (seeded) OwnerAfterCont() bool { return true }
