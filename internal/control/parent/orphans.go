package parent

import (
	"os"

	"github.com/prometheus/procfs"
)

// orphans returns the zombies among this process' children that are session leaders. Only QEMU is started as a session
// leader (driver/qemu); the roles are group leaders in this process' own session, and os/exec waits for those.
func orphans() []int {
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil // without /proc nothing can be reaped; the next tick tries again
	}
	var found []int
	for _, p := range procs {
		stat, err := p.Stat()
		if err == nil && stat.PPID == os.Getpid() && stat.State == "Z" && stat.Session == p.PID {
			found = append(found, p.PID)
		}
	}
	return found
}
