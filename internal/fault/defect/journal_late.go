//go:build defect_journal_late

package defect

func init() { Names = append(Names, "journal_late") }

// JournalLate is seeded.
func (seeded) JournalLate() bool { return true }
