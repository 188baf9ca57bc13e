// Package gate holds the tests that Godwit has to pass as a whole: the real binary, built with the race detector when the tests are,
// in clusters of hosts on loopback addresses (test/lab), with real QEMU and a real Linux guest that is watched from its own
// network segment. Each test starts its own cluster and leaves nothing behind.
//
// What a migration must keep is checked in one place, flight.healthy: the same boot, memory right, the TCP stream exact, no
// packet lost, one QEMU, nothing left anywhere else. That this check can fail is itself tested; it can be seen with
//
//	go test ./test/gate -run TestTenMigrations -corrupt
//
// The tests need root, as Godwit on a real host does. Their guests run under emulation where there is no usable KVM.
package gate
