package sim

type source struct{}

func (s *source) short() {}
