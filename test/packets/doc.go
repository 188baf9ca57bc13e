// Package packets counts every packet of a guest that migrates: 10,000 numbered UDP packets a second to it and as many from it, through
// real hosts, real switches and real QEMUs, while migrations complete and others are aborted at different phases. Both ends check the
// numbers (guest/stream, Tally): one that is missing, comes twice or comes after a later one fails the test.
//
// A packet may also be lost where no migration is at fault: by a guest or a client that does not get to run for so long that bounded queues in
// front of it are full. Every place on the way that can drop counts what it drops, and the result has all of these counters. A run in which a sender did not keep
// its rate says nothing and fails, too.
//
//	go test ./test/packets                      the short form of CI
//	make packets                                20 migrations and 10 aborted ones, kept in test/results/packets.json
//	make packets-bridge                         the same on the bridge driver, measured only
package packets
