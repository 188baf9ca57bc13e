// Package qga speaks with qemu-guest-agent in one guest over one unix socket (QEMU documentation, "QEMU Guest Agent Protocol
// Reference"): the few commands that Godwit needs, and no others. It never runs a program in the guest, reads none of its files,
// and sets no passwords.
//
// The other end is inside the guest and is not trusted. It may be silent, stopped for hours, lie, or send without end. So every call
// has a deadline, a line and what is skipped before it are bounded (LineMax, SkipMax), what is kept of an answer is bounded and
// cleaned of everything that a terminal could take for a command (Clean), and nothing is read while no call waits: a flood
// then stands still in QEMU's own small queue.
//
// The protocol has no ids. After a call that was given up, its late answer would be taken for that of the next one; the client
// therefore synchronises, with guest-sync-delimited, when it connects and again after every call that did not end well.
package qga
