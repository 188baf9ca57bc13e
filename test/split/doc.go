// Package split tries to make a real cluster run two copies of a VM: real hosts in network namespaces, real etcd, real QEMUs with a guest that writes to its
// disk without end, and a datastore that sees every write (test/oracle). Faults come by seed, one after the other.
//
// A run is: a cluster, a few writing VMs, clients that change VMs' records by all hosts, faults; after each fault every VM must write again, and at one
// place. At its end three judges speak: the oracle (no write of an older generation after a newer one's, every number there), the hosts (one
// QEMU for each VM, nothing left of what is gone), and porcupine (what the API said to its clients has an order in which each call
// took effect once, between its beginning and its end).
//
//	go test ./test/split                      the three runs of CI
//	make split RUNS=40                        forty, kept in test/results/split.json
//	go test ./test/split -runs 1 -seed 17 -v  one, with its story
package split
