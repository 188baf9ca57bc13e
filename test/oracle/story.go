package oracle

import (
	"fmt"
	"maps"
	"slices"
)

// Story tells the log in lines: what one process writes without anybody else writing to the image becomes one line. images are as for Check; other
// files, and lock records of other VMs, are left out.
func Story(log []Entry, images map[string]string) []string {
	var lines []string
	run := map[string][2]Entry{} // by image: the first and the last write of whoever writes now
	count := map[string]int{}
	watchedVM := map[string]bool{}
	for _, vm := range images {
		watchedVM[vm] = true
	}
	end := func(file string) {
		if n := count[file]; n > 0 {
			first, last := run[file][0], run[file][1]
			lines = append(lines, fmt.Sprintf("%9.3fs %-7s %s[%d] wrote %d times to %s until %.3fs, numbers %d to %d",
				first.At.Seconds(), first.Host, first.Program, first.Process, n, file, last.At.Seconds(), first.Number, last.Number))
		}
		count[file] = 0
	}
	for _, e := range log {
		_, watched := images[e.File]
		switch e.Kind {
		case Locked:
			if watchedVM[e.VM] {
				lines = append(lines, e.String())
			}
		case Noted:
			for _, file := range slices.Sorted(maps.Keys(images)) { // what comes after a fault is a line of its own
				end(file)
			}
			lines = append(lines, e.String())
		case Wrote, Sized:
			if !watched {
				continue
			}
			if last := run[e.File][1]; count[e.File] > 0 && (last.Host != e.Host || last.Process != e.Process) {
				end(e.File)
			}
			if count[e.File] == 0 {
				run[e.File] = [2]Entry{e, e}
			}
			run[e.File] = [2]Entry{run[e.File][0], e}
			count[e.File]++
		case Opened, Denied:
			if watched {
				lines = append(lines, e.String())
			}
		}
	}
	for _, file := range slices.Sorted(maps.Keys(images)) {
		end(file)
	}
	return lines
}
