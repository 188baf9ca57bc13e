// Package qemu owns QEMU processes: it writes the command line of a VM, starts the process, finds it again after a restart
// of the agent, ends it, and finds out what the installed QEMU can do and whether it does it right. It also makes and
// checks disk images with qemu-img.
//
// It decides nothing: whether a VM may run, where, and when its vCPUs start (-S holds them back) is its caller's to say
// over QMP (driver/qmp). Its main types are Process and Abilities.
//
//	CommandLine(spec, env)      pure
//	      │
//	Start ─► run directory, cgroup, user, monitor socket ─► exec ─► Process ◄─ Adopt(run directory)
//	                                                                  │
//	                                                QMP · Done · Kill · Quit · Usage · Cleanup
//
// A QEMU outlives the process that started it: it has its own session and cgroup, its stderr goes to a file, and nothing of it
// hangs on a pipe. Its run directory holds all that is needed to take it over again:
//
//	pid             which process it is: PID, start time and boot id (so that a reused PID is not mistaken for it)
//	qmp.sock        monitor, one client at a time
//	serial.sock     COM1
//	heartbeat.sock  virtio-serial port org.godwit.heartbeat
//	control.sock    virtio-serial port org.godwit.control
//	qemu.log        stderr
package qemu
