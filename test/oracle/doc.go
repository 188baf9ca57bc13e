// Package oracle is a datastore that sees every write. Tests give it to simulated hosts in place of a shared file system: each host mounts
// the same folder by a FUSE mount of its own (Oracle.Mount), and all that any host does to an image goes through one process, in one order.
//
//	host-1: QEMU, agent ── mount ─┐
//	host-2: QEMU, agent ── mount ─┼─ Oracle: one lock around log and write ── the folder
//	host-3: QEMU, agent ── mount ─┘
//
// # What is observed
//
// An entry of the log is made under the same lock as the deed, so the log's order is the order on the disk. It says
//
//   - the host: by whose mount the request came;
//   - the process: the one that opened the file, by its id and name, read from /proc while its open(2) waits for our answer;
//   - offset and length of a write, of a discard and of a change of size, and the number in a block of the writing guest (guest/tiny, Writer);
//   - each lock record (driver/datastore) that a host made, by the link(2) or create that made it.
//
// The generation with which a process writes is not in its requests. Check takes the highest lock record of the VM that the process' host had
// made when the process first opened one of the VM's images. A QEMU keeps it for its life. One that finds no record but those that other QEMUs of its
// host go by waits for its own until it writes: a migration's target starts its QEMU beside the record (decision 29), and lets it run after it.
//
// # What can go wrong on purpose
//
// A mount can be cut off: its requests wait, as on a hard NFS mount, so that a process in one cannot even be killed; or wait and can be
// killed; or fail with EIO. It can be slow. A host that is reset, as a machine without power is, loses what waits: it is never
// done. A cut-off host keeps its byte-range locks for Options.LockLife, as an NFSv4 client does, and then loses them: what it writes with the
// files it had open then fails with EIO (storage arbitrates), or passes all the same (Options.LostLocksPass, as with Linux's nfs.recover_lost_locks).
//
// Byte-range locks of all mounts meet in the backing folder's own lock table, so QEMU's image locks arbitrate between hosts.
//
// The package needs root, /dev/fuse and a backing folder with byte-range locks. It does not check who may open which file beyond what
// the kernel does by owner and mode, and it does not model a server that loses writes it has acknowledged.
package oracle
