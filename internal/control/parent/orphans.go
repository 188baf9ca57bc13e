package parent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

// orphans returns the zombies among this process' children that are session leaders. Only QEMU is started as a session
// leader (driver/qemu); the roles are group leaders in this process' own session, and os/exec waits for those.
func orphans() []int {
	var found []int
	for _, pid := range children() {
		p, err := procfs.NewProc(pid)
		if err != nil {
			continue // gone meanwhile
		}
		stat, err := p.Stat()
		if err == nil && stat.State == "Z" && stat.Session == pid {
			found = append(found, pid)
		}
	}
	return found
}

// children lists this process' children, which the kernel keeps by the thread that they belong to (proc(5), "children").
func children() []int {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil // the pattern is fixed and well formed
	}
	var pids []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
