// Package sim runs whole clusters in virtual time, with faults, and looks at every moment whether a promise of Godwit is broken.
//
// One run is one goroutine and one random source, the seed of a run: the same seed gives the same run, on every machine. The agents, wardens, leaders and
// both ends of a hand-over are the machines of policy/authority, policy/ha and policy/handover as production drives them, and what they write and read
// in the store are functions of the latter two; nothing of their rules is written here a second time. Simulated is what is around them: clocks that drift and jump, a network that loses and delays,
// an etcd that stalls and changes its leader, QEMUs that hang or ignore a kill, storage with writes under way, watchdogs, and processes that
// are stopped or killed between any two steps.
//
//	world ── queue of events in real time, one random source, hash of all that happened
//	  ├─ etcd        records with revisions, transactions at one moment; members, leader, quorum, stalls (etcd.go, records.go)
//	  ├─ host        clock, watchdog, processes: warden, agent, QEMUs (host.go, warden.go, agent.go, qemu.go)
//	  │    └─ agent  starts and stops VMs, both ends of migrations, leads if elected (vms.go, source.go, target.go, leader.go)
//	  ├─ user        powers VMs on and off, moves them, confirms deaths that are true (user.go)
//	  ├─ faults      what breaks, when, for how long (faults.go)
//	  └─ checks      the invariants S1-S10 and L1-L4 (check.go)
//
// What control does with an action of a machine is mirrored as thinly as it can be, in the order that the contracts of the policy packages
// demand. The package does not know etcd's, QEMU's or the kernel's real behaviour beyond what is written beside each model; test/split
// holds the same promises against real processes.
package sim
