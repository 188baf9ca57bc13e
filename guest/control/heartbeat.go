package control

import (
	"fmt"
	"strconv"
	"strings"
)

// Heartbeat is a line that the guest writes to the port HeartbeatName five times a second:
//
//	hb 42 up=8400 boot=1f0c… ip=192.168.127.2
type Heartbeat struct {
	Count    uint64 // from 1, without gaps as long as somebody reads
	UptimeMS int64
	Boot     string
	IP       string // empty if there is none
}

// AppendTo appends the line, with its end, to b and returns the longer slice; it allocates nothing when b has room.
func (h Heartbeat) AppendTo(b []byte) []byte {
	b = append(b, "hb "...)
	b = strconv.AppendUint(b, h.Count, 10)
	b = append(b, " up="...)
	b = strconv.AppendInt(b, h.UptimeMS, 10)
	b = append(b, " boot="...)
	b = append(b, h.Boot...)
	b = append(b, " ip="...)
	if h.IP == "" {
		b = append(b, "none"...)
	} else {
		b = append(b, h.IP...)
	}
	return append(b, '\n')
}

// ParseHeartbeat reads a line, without its end. A reader that connects may see a torn line first; it is an error like any other.
func ParseHeartbeat(line string) (Heartbeat, error) {
	bad := fmt.Errorf("%.80q is no heartbeat", line)
	words := strings.Fields(line)
	if len(words) != 5 || words[0] != "hb" {
		return Heartbeat{}, bad
	}
	var h Heartbeat
	var err error
	if h.Count, err = strconv.ParseUint(words[1], 10, 64); err != nil {
		return Heartbeat{}, bad
	}
	up, ok1 := strings.CutPrefix(words[2], "up=")
	boot, ok2 := strings.CutPrefix(words[3], "boot=")
	ip, ok3 := strings.CutPrefix(words[4], "ip=")
	if !ok1 || !ok2 || !ok3 || boot == "" {
		return Heartbeat{}, bad
	}
	if h.UptimeMS, err = strconv.ParseInt(up, 10, 64); err != nil {
		return Heartbeat{}, bad
	}
	h.Boot = boot
	if ip != "none" {
		h.IP = ip
	}
	return h, nil
}
