// Package control is the line protocol by which tests, demo and bench speak with the Linux guest: over TCP port 9 or over the
// virtio-serial port org.godwit.control, which needs no network. A request is one line of words, "verb key=value …", the answer one
// line of JSON. The package has the types of both ends and the Client; the guest's end is in guest/init.
//
//	status                                     Status
//	dirty rate=20M set=64M pattern=random      Status, as soon as the working set is filled; replaces an older one
//	dirty stop                                 Status; the region stays and can be checked
//	checksum                                   Checksum
//	corrupt [page=N]                           Status; flips a bit in secret, the next checksum must be red
//	disk name=vda [write=OFFSET]               Disk, after writing Pattern at the offset
//	net dev=eth1                               Net, after asking for an address by DHCP
//	packets [run=N rate=10000 to=IP:PORT]      Packets, of a new run that sends and counts, or of the one there is
//	packets stop                               Packets, and no more are sent
//	seed                                       Seed, as cloud-init would find it
//	poweroff, reboot                           Status, then the guest goes
//
// A word id=N in a request, with a number, is repeated in its answer. Empty lines are ignored. Sizes and rates are bytes with an optional K, M or G (powers of 1024).
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Port is the guest's TCP port of the protocol.
const Port = 9

// PortName and HeartbeatName are the names of the guest's virtio-serial ports for this protocol and for Heartbeat lines.
const (
	PortName      = "org.godwit.control"
	HeartbeatName = "org.godwit.heartbeat"
)

// LineMax bounds a line in either direction, in bytes.
const LineMax = 4096

// Status is how the guest is.
type Status struct {
	Boot      string `json:"boot"`            // random, made at boot: the same boot means that the guest was never restarted
	UptimeMS  int64  `json:"uptime_ms"`       // since the guest's init started, by its own monotonic clock
	Heartbeat uint64 `json:"heartbeat"`       // the number of heartbeats so far
	IP        string `json:"ip,omitempty"`    // the address of eth0; empty without one
	Kernel    string `json:"kernel"`          // release of its kernel
	UEFI      bool   `json:"uefi,omitempty"`  // it was started by UEFI firmware
	Dirty     *Dirty `json:"dirty,omitempty"` // the region, if there is one
}

// Dirty describes the region under test and its writer.
type Dirty struct {
	Running bool   `json:"running"`
	Rate    int64  `json:"rate"` // bytes per second asked for
	Set     int64  `json:"set"`  // bytes of the working set
	Pattern string `json:"pattern"`
	Writes  uint64 `json:"writes"` // pages written so far; their increase × 4096 is the true rate
}

// Checksum is the verdict on the region.
type Checksum struct {
	OK          bool   `json:"ok"`           // nothing was lost
	Pages       int    `json:"pages"`        // pages checked
	Bad         int    `json:"bad"`          // pages whose content is not that of their version
	FirstBad    int    `json:"first_bad"`    // the lowest of them, or -1
	VersionsSum uint64 `json:"versions_sum"` // grows with every write; never less than in an earlier checksum
	WritesMin   uint64 `json:"writes_min"`   // writes counted apart before and after the check;
	WritesMax   uint64 `json:"writes_max"`   // VersionsSum lies between them
	SHA256      string `json:"sha256"`       // of the versions, which determine the content: comparable while no writer runs
}

// String says the verdict in words.
func (c Checksum) String() string {
	switch {
	case c.OK:
		return fmt.Sprintf("%d pages right", c.Pages)
	case c.Bad > 0:
		return fmt.Sprintf("%d of %d pages wrong, the first is %d", c.Bad, c.Pages, c.FirstBad)
	default:
		return fmt.Sprintf("versions add up to %d, but %d to %d pages were written", c.VersionsSum, c.WritesMin, c.WritesMax)
	}
}

// Failure is the answer to a request that was refused.
type Failure struct {
	Error string `json:"error"`
}

// Answer encodes the answer to the request with that id as a line with its end. Result is a struct of this package.
func Answer(id uint64, result any) ([]byte, error) {
	body, err := json.Marshal(result)
	if err != nil {
		return nil, err
	}
	line := body
	if id != 0 {
		line = append(strconv.AppendUint([]byte(`{"id":`), id, 10), ',')
		line = append(line, body[1:]...) // every result is an object with at least one field
	}
	return append(line, '\n'), nil
}

// Request is a parsed line.
type Request struct {
	ID   uint64 // 0 without one
	Verb string
	Args map[string]string // the other key=value words; a word without = is a key with an empty value
}

// ParseRequest splits a line into words. It fails on an empty line, a repeated key and a line longer than LineMax.
func ParseRequest(line string) (Request, error) {
	if len(line) > LineMax {
		return Request{}, fmt.Errorf("line of %d bytes is longer than %d", len(line), LineMax)
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		return Request{}, errors.New("empty line; try status")
	}
	r := Request{Verb: words[0], Args: make(map[string]string, len(words)-1)}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		if _, twice := r.Args[key]; twice {
			return Request{}, fmt.Errorf("%s is given twice", key)
		}
		r.Args[key] = value
	}
	if id, given := r.Args["id"]; given {
		var err error
		if r.ID, err = strconv.ParseUint(id, 10, 64); err != nil {
			return Request{}, fmt.Errorf("id %q is no number", id)
		}
		delete(r.Args, "id")
	}
	return r, nil
}

// ParseSize reads a number of bytes such as 4096, 64M or 1G, at least 0.
func ParseSize(s string) (int64, error) {
	digits, shift := s, 0
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'K', 'k':
			digits, shift = s[:n-1], 10
		case 'M', 'm':
			digits, shift = s[:n-1], 20
		case 'G', 'g':
			digits, shift = s[:n-1], 30
		}
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v < 0 || v > (1<<62)>>shift {
		return 0, fmt.Errorf("size %q is no number of bytes; write it as 4096, 64M or 1G", s)
	}
	return v << shift, nil
}

// FormatSize writes a size as ParseSize reads it, with the largest unit that loses nothing.
func FormatSize(v int64) string {
	switch {
	case v != 0 && v%(1<<30) == 0:
		return strconv.FormatInt(v>>30, 10) + "G"
	case v != 0 && v%(1<<20) == 0:
		return strconv.FormatInt(v>>20, 10) + "M"
	case v != 0 && v%(1<<10) == 0:
		return strconv.FormatInt(v>>10, 10) + "K"
	default:
		return strconv.FormatInt(v, 10)
	}
}
