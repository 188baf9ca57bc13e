package oracle

import (
	"fmt"
	"strings"
	"time"
)

// Kind is what an entry of the log is about.
type Kind string

// The kinds.
const (
	Opened Kind = "opened" // a process has opened an image for writing
	Wrote  Kind = "wrote"  // bytes, or the number of bytes discarded or made zero
	Sized  Kind = "sized"  // the file's size was changed to Offset
	Locked Kind = "locked" // a lock record was made
	Noted  Kind = "noted"  // by Oracle.Note
	Denied Kind = "denied" // a write that was refused: the locks of its file were lost
)

// Entry is one deed, in the order in which they were done.
type Entry struct {
	At         time.Duration `json:"at"` // since the oracle was made
	Kind       Kind          `json:"kind"`
	Host       string        `json:"host,omitempty"`    // whose mount
	Process    int           `json:"process,omitempty"` // that opened the file
	Program    string        `json:"program,omitempty"`
	File       string        `json:"file,omitempty"` // below the folder
	Offset     int64         `json:"offset,omitempty"`
	Length     int64         `json:"length,omitempty"`
	Number     uint64        `json:"number,omitempty"` // of a block of the writing guest
	VM         string        `json:"vm,omitempty"`     // of a lock record
	Generation uint64        `json:"generation,omitempty"`
	Text       string        `json:"text,omitempty"` // of Noted
}

// String is the entry as a line of a story.
func (e Entry) String() string {
	at := fmt.Sprintf("%9.3fs %-7s", e.At.Seconds(), e.Host)
	switch e.Kind {
	case Locked:
		return fmt.Sprintf("%s lock record %d of %s", at, e.Generation, e.VM)
	case Noted:
		return fmt.Sprintf("%s %s", at, e.Text)
	case Opened, Wrote, Sized, Denied:
	}
	return fmt.Sprintf("%s %s %s: %s[%d] %d+%d number %d", at, e.Kind, e.File, e.Program, e.Process, e.Offset, e.Length, e.Number)
}

// qemu begins the name of every QEMU; other programs (the agent, qemu-img) live from one open file to the next, and a generation is theirs for so long.
const qemu = "qemu-system"

// writer is a process of a host.
type writer struct {
	host    string
	process int
}

// image is what Check remembers of one file.
type image struct {
	top     uint64 // the highest generation that has written
	first   Entry  // the first write of it
	current writer // who wrote last with it
	former  map[writer]bool
	number  uint64 // of the last block of the writing guest
}

// Check lists, each as a line, what in the log no cluster may do. images names the VM of each image, by its path below the folder; other files are
// nobody's, and not looked at. It holds:
//
//   - after the first write of a generation nothing is written by a lower one;
//   - in one generation one process of one host writes: another one may take over for good (qemu-img after QEMU), but never come back;
//   - a QEMU has a lock record before it writes;
//   - the writing guest's numbers go up by one from block to block, whichever process writes them: no acknowledged write was lost, and none comes from
//     a copy that had not seen it. A number that is repeated is a block that was tried again.
func Check(log []Entry, images map[string]string) []string {
	records := map[string]uint64{}                // by host and VM: the highest lock record it made
	unused := map[string]bool{}                   // by the same: no QEMU goes by that record yet
	generations := map[writer]map[string]uint64{} // of a process, by VM
	files := map[string]*image{}
	var bad []string
	for _, e := range log {
		if e.Kind == Locked {
			key := e.Host + " " + e.VM
			records[key], unused[key] = max(records[key], e.Generation), true
			continue
		}
		vm, watched := images[e.File]
		if !watched || e.Kind == Noted || e.Kind == Denied {
			continue
		}
		w := writer{e.Host, e.Process}
		if generations[w] == nil {
			generations[w] = map[string]uint64{}
		}
		key := e.Host + " " + vm
		g, known := generations[w][vm]
		switch isQEMU := strings.HasPrefix(e.Program, qemu); {
		case isQEMU && !known && (e.Kind != Opened || unused[key]):
			g, unused[key] = records[key], false
			generations[w][vm] = g
		case !isQEMU && (!known || e.Kind == Opened):
			g = records[key]
			generations[w][vm] = g
		}
		if e.Kind == Opened {
			continue
		}
		f := files[e.File]
		if f == nil {
			f = &image{former: map[writer]bool{}}
			files[e.File] = f
		}
		bad = append(bad, f.wrote(e, w, g)...)
	}
	return bad
}

// wrote takes a write and says what is wrong with it.
func (f *image) wrote(e Entry, w writer, g uint64) (bad []string) {
	say := func(format string, args ...any) { bad = append(bad, e.String()+": "+fmt.Sprintf(format, args...)) }
	switch {
	case g < f.top:
		say("generation %d writes after generation %d did, at %.3fs on %s", g, f.top, f.first.At.Seconds(), f.first.Host)
		return bad
	case g > f.top || f.current == writer{}:
		if g > f.top {
			f.former = map[writer]bool{}
		}
		f.top, f.first, f.current = g, e, w
	case w != f.current:
		if f.current.host != w.host && g > 0 {
			say("two hosts write with generation %d: %s did before", g, f.current.host)
		} else if f.former[w] {
			say("two processes of %s write in turn with generation %d: %d did in between", w.host, g, f.current.process)
		}
		f.former[f.current] = true
		f.current = w
	}
	if g == 0 && strings.HasPrefix(e.Program, qemu) {
		say("a QEMU writes, and its host has no lock record")
	}
	if e.Number == 0 {
		return bad
	}
	if f.number != 0 && e.Number != f.number+1 && e.Number != f.number {
		say("number %d follows %d", e.Number, f.number)
	}
	f.number = e.Number
	return bad
}
