// Package matrix strikes real migrations in each of their phases with each thing that may go wrong, and holds what becomes of the VM to the table that the
// hand-over's machines give (internal/policy/handover/testdata/matrix.table).
//
// A cell is a phase and a fault. Its VM is a small guest that writes memory by a rule; its hosts are two of a real cluster on an etcd of its own, whose
// datastore is the tests' (test/oracle). A phase lasts for milliseconds, so each is held, from outside, by stopping the process that would end it: the
// target's QEMU, the etcd, the target's agent, or what comes back over the stream. When the fault has been struck they go on. A strike that came too late, by the hosts'
// own logs, is a miss, and the cell is tried again with another VM.
//
// What became of the VM is judged from outside: processes, the record that each host shows, the guest's memory as its QEMU has it, switch ports, lock
// records. Then the VM must migrate once more.
//
//	go test ./test/matrix                  the twenty cells of CI
//	make matrix                            all, kept in test/results/matrix.json
//	make matrix CELLS=30 SEED=7 AT=2       thirty of them, two at a time
//	go test ./test/matrix -v -only 'loaded, target QEMU killed'
package matrix
