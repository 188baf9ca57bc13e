package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"
)

// hangUpRoles passes SIGHUP on to the roles that this process started. QEMUs that it has inherited are its children too and get
// none: they end at it.
func hangUpRoles() {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return // the pattern is fixed and well formed
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && isRole(pid) {
				_ = syscall.Kill(pid, syscall.SIGHUP) // gone already is as good
			}
		}
	}
}

// isRole reports whether the process is a role of this binary that listens to SIGHUP already: the signal ends one that does not.
func isRole(pid int) bool {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return false
	}
	args, err := p.CmdLine()
	if err != nil || len(args) < 3 || args[1] != "role" {
		return false
	}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if mask, ok := strings.CutPrefix(line, "SigCgt:"); ok {
			caught, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return err == nil && caught&(1<<(syscall.SIGHUP-1)) != 0
		}
	}
	return false
}
