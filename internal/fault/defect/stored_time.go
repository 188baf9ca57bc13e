//go:build defect_stored_time

package defect

func init() { Names = append(Names, "stored_time") }

// StoredTime is seeded.
func (seeded) StoredTime() bool { return true }
