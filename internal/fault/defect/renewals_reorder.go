//go:build defect_renewals_reorder

package defect

func init() { Names = append(Names, "renewals_reorder") }

// RenewalsReorder is seeded.
func (seeded) RenewalsReorder() bool { return true }
