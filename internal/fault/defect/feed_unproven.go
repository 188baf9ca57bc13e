//go:build defect_feed_unproven

package defect

func init() { Names = append(Names, "feed_unproven") }

// FeedUnproven is seeded.
func (seeded) FeedUnproven() bool { return true }
