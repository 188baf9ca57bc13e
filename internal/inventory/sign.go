package inventory

import "fmt"

// Sign is the last that the store says of a host's life: its epoch record, or that there is none. The host's agent writes that when it starts, the
// leader when it fences or removes the host.
type Sign struct {
	Removed bool   // the store has no such host (any more)
	Fenced  bool   // its epoch was ended by a fence, and its agent has begun no other since
	Why     string // of the fence
	BootID  string // of the kernel under its agent's last start
}

// Dead reports whether nothing of the host runs that ran when the sign was made, and nothing that it wrote is under way still.
func (s Sign) Dead() bool { return s.Removed || s.Fenced }

// Lost reports whether the heir is dead for its migration, and why, by a sign of its host: it is dead, or was booted since it was named. It will not
// become owner by what it knew, if the run record names it heir still when that is read after the sign.
func (h Heir) Lost(s Sign) (why string, lost bool) {
	switch {
	case h.IsZero():
		return "", false
	case s.Removed:
		return fmt.Sprintf("host %s was removed from the cluster", h.Host), true
	case s.Fenced:
		return s.Why, true
	case h.Booted(s.BootID):
		return fmt.Sprintf("host %s was booted since", h.Host), true
	}
	return "", false
}

// Dead reports whether a host is dead for the VM, by a sign of it: it is dead, or heir and lost. An owner that was booted is not: its agent knows what
// of the VM is left there.
func (r VMRun) Dead(host HostID, s Sign) bool {
	if s.Dead() {
		return true
	}
	_, lost := r.Heir.Lost(s)
	return lost && host == r.Heir.Host
}
