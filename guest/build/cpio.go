package build

import (
	"bytes"
	"fmt"
	"io"
)

// entry is a file of the archive.
type entry struct {
	name    string
	mode    uint32 // type and permissions as in stat(2)
	content []byte
	major   uint32 // of a device
	minor   uint32
}

// The file types of stat(2).
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
	typeLink = 0o120000 // its content is where it points
)

// writeArchive writes entries as a cpio archive in the format newc, which the kernel's Documentation/driver-api/early-userspace/buffer-format.rst
// describes. Owner, times and inode numbers are constant, so that equal entries give equal bytes.
func writeArchive(w io.Writer, entries []entry) error {
	var archive bytes.Buffer
	for i, e := range append(entries, entry{name: "TRAILER!!!"}) {
		fmt.Fprintf(&archive, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			i+1,    // inode
			e.mode, //
			0, 0,   // owner and group
			1, // links
			0, // time
			len(e.content),
			0, 0, // device of the file system
			e.major, e.minor,
			len(e.name)+1,
			0) // check
		archive.WriteString(e.name)
		archive.WriteByte(0)
		align(&archive)
		archive.Write(e.content)
		align(&archive)
	}
	_, err := w.Write(archive.Bytes())
	return err
}

// align pads to four bytes.
func align(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
