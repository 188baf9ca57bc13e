// Package image makes, copies, grows and removes disk images in a folder, with qemu-img behind it.
//
// Every image that it makes is made under a hidden name in the same folder, written to the disk, and only then given its name
// by link(2), which fails when the name is taken. So nothing is ever overwritten, of two hosts that make the same name one wins,
// and a crash leaves nothing but a hidden file, which Sweep removes when the host's agent starts next:
//
//	.godwit-part-HOST-0123456789abcdef ── link(2) ─► debian-12.qcow2
//
// An image that comes from elsewhere (Import) is hostile until it is proven not to be. Its header is read here before qemu-img sees it
// (header.go), qemu-img is told the format and never guesses, and it runs as the unprivileged user of QEMU, with bounds on memory and
// time, and without a way to outlive the agent. What names another file (a backing file, an external data file, VMDK extents) is refused: it
// could name a file of the host (QEMU, CVE-2024-4467; OpenStack, OSSA-2023-002 and OSSA-2024-001).
//
// The package knows no VM and no inventory: whether an image may be removed is its caller's to say. A Folder may be used by many
// goroutines and by many hosts at once.
package image
