//go:build defect_authority_unchecked

package defect

func init() { Names = append(Names, "authority_unchecked") }

// AuthorityUnchecked is seeded.
func (seeded) AuthorityUnchecked() bool { return true }
