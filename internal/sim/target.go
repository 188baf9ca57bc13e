package sim

type target struct{}

func (t *target) short()       {}
func (a *agent) restoreMoves() {}
