// Package qmp speaks the QEMU Machine Protocol (QEMU documentation, "QEMU Machine Protocol Specification") with one QEMU
// over one unix socket: typed commands, and events as a stream.
//
// It does not start QEMU, does not decide anything and knows nothing about VMs; driver/qemu owns the process. Its main
// type is Conn.
//
//	         Do(ctx, name, args, &result)                Subscribe() *Events
//	                    │                                     ▲
//	              queue (bounded)                   bounded, never blocks the reader
//	                    ▼                                     │
//	socket ◄──────── writer                    reader ◄─────── socket
//	                                             │
//	                       replies by id to the call that waits, late ones dropped
//
// QEMU does not always answer: its main loop blocks in a migration's device phase when the target stops reading
// (measured with 7.2 and 10.0), and a stopped or swapped-out process is silent for as long as it likes. So every call takes
// a context and returns when that ends; the connection stays usable, and the answer that comes too late is dropped by its id.
// A call that was given up after it had been sent may still be carried out; the error says which of the two it is
// (Unsent). A peer that is gone ends all calls, present and future, with fault.Unavailable.
package qmp
