// Package warden is the main process of a host: it starts the roles (store, switch, agent) as children of one binary,
// starts again what ends, kills and starts again what is silent, and ends them all when it is told to.
//
//	role ── "starting WHAT", "alive", "ending" ──► line (a socket pair) ──► one loop ─► start, SIGKILL, pause
//	                                                                          └──────► systemd: READY, STATUS, WATCHDOG
//
// A role that serves says "alive" twice a second, each time after its own loops and locks have answered (Line.Beat). One that
// has said nothing for more than 2 s is killed. Only time counts in which the warden itself ran and the role was not waiting
// for a processor: a machine that stood still, or has far too much to do, is no reason to kill anything.
//
// A second loop, the guard, ends VMs when the host's authority does, and feeds the machine's watchdog with the proof of it (guard.go). The rules are
// policy/authority's; the agent tells it what it must know over the line (words.go, ask.go):
//
//	agent ── "authority", "vm", "gone" … ──► line ──► guard ─► cgroups: freeze, thaw, kill, and what the kernel says of them
//	      ◄── "ok", "no", "fencing" ────────             └──► watchdog, RUN/authority
//
// VMs are nobody's children that matter here: a QEMU outlives its agent and the warden too, and whatever happens to a role,
// no signal goes to a QEMU but from the guard. As the subreaper of what it started (prctl(2), PR_SET_CHILD_SUBREAPER) the warden inherits the
// QEMUs of a dead agent, so that none of them becomes a zombie. It opens no network connection, and its memory is locked.
package warden
