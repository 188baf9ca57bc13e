//go:build defect_sent_after_ack

package defect

func init() { Names = append(Names, "sent_after_ack") }

// SentAfterAck is seeded.
func (seeded) SentAfterAck() bool { return true }
