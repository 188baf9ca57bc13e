// Package doors tries what strangers, users and hosts may send to a running host: any bytes at each of its ports and sockets, before and after
// the handshake, and any message in each call of the API, as each kind of caller. Nothing of it may end a process, leave a call without an
// answer, or let somebody do what is not his.
//
// The host is a real one, of the real binary: one for all of a run's processes, since go test -fuzz has several. The ports of etcd are not
// among the doors (they are etcd's, behind mutual TLS), nor are QEMU's sockets: what comes from there is fuzzed in driver/qmp, driver/qga and
// control/agent, and the words on a warden's line in control/warden.
package doors
