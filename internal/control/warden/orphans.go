package warden

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"
)

// reapOrphans takes note of adopted processes that ended, QEMUs first of all, so that they do not stay as zombies. It leaves the
// roles to os/exec, which waits for them.
func (w *warden) reapOrphans() {
	for _, pid := range descendants() {
		if slices.ContainsFunc(w.children, func(c *child) bool { return c.running() && c.pid() == pid }) {
			continue
		}
		p, err := procfs.NewProc(pid)
		if err != nil {
			continue // gone meanwhile
		}
		if stat, err := p.Stat(); err == nil && stat.State == "Z" {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // gone already is as good
		}
	}
}

// descendants lists this process' children, which the kernel keeps by the thread that they belong to (proc(5), "children").
func descendants() []int {
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
