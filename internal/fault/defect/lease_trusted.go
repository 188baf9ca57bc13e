//go:build defect_lease_trusted

package defect

func init() { Names = append(Names, "lease_trusted") }

// LeaseTrusted is seeded.
func (seeded) LeaseTrusted() bool { return true }
