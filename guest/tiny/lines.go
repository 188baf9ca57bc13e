package tiny

import "fmt"

// Check is one report of the checked guest.
type Check struct {
	Passes uint32 // how often it has written every page since its start; wraps round
	Bad    uint32 // pages that differ from what was last written; anything but 0 means lost writes
	Behind uint32 // how many passes the worst page is behind
}

// ParseHeartbeat reads a line "H<8 hex>" of the heartbeat guest, without its line end, and returns the guest's ticks of 10 ms. The
// count is 0 in the first line and travels with the guest: after a migration it goes on, after a reset it starts anew.
func ParseHeartbeat(line string) (ticks uint32, ok bool) {
	if len(line) != 9 || line[0] != 'H' {
		return 0, false
	}
	return hex(line[1:])
}

// ParseCheck reads a line "C<8 hex> <8 hex> <8 hex>" of the checked guest, without its line end.
func ParseCheck(line string) (c Check, ok bool) {
	if len(line) != 27 || line[0] != 'C' || line[9] != ' ' || line[18] != ' ' {
		return Check{}, false
	}
	var ok1, ok2, ok3 bool
	c.Passes, ok1 = hex(line[1:9])
	c.Bad, ok2 = hex(line[10:18])
	c.Behind, ok3 = hex(line[19:27])
	if !ok1 || !ok2 || !ok3 {
		return Check{}, false
	}
	return c, true
}

// String says the report in words.
func (c Check) String() string {
	if c.Bad == 0 {
		return fmt.Sprintf("all pages right after %d passes", c.Passes)
	}
	return fmt.Sprintf("%d pages lost writes, the worst by %d passes of %d", c.Bad, c.Behind, c.Passes)
}

// hex reads lower-case digits as the guests print them.
func hex(digits string) (v uint32, ok bool) {
	for _, d := range []byte(digits) {
		switch {
		case d >= '0' && d <= '9':
			v = v<<4 | uint32(d-'0')
		case d >= 'a' && d <= 'f':
			v = v<<4 | uint32(d-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}
