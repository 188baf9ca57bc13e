//go:build defect_buffered_disk

package defect

func init() { Names = append(Names, "buffered_disk") }

// BufferedDisk is seeded.
func (seeded) BufferedDisk() bool { return true }
