package agent

import (
	"bufio"
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// heartbeatLineMax bounds a line that a guest may say; a guest is not trusted.
const heartbeatLineMax = 1024

// pulse listens to a guest's heartbeats on their virtio-serial port.
type pulse struct {
	path string

	mu   sync.Mutex
	last inventory.Heartbeat
}

// run listens until ctx ends.
func (p *pulse) run(ctx context.Context) {
	lines(ctx, p.path, func(conn net.Conn) {
		scan := bufio.NewScanner(conn)
		scan.Buffer(make([]byte, 0, heartbeatLineMax), heartbeatLineMax)
		for scan.Scan() {
			if beat, ok := parseHeartbeat(scan.Text()); ok {
				beat.Seen = time.Now()
				p.mu.Lock()
				p.last = beat
				p.mu.Unlock()
			}
		}
	})
}

func (p *pulse) read() inventory.Heartbeat {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// parseHeartbeat reads "hb COUNT up=MILLISECONDS boot=ID ip=ADDRESS"; unknown words are left for later guests.
func parseHeartbeat(line string) (inventory.Heartbeat, bool) {
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "hb" {
		return inventory.Heartbeat{}, false
	}
	count, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return inventory.Heartbeat{}, false
	}
	beat := inventory.Heartbeat{Count: count}
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "up":
			if ms, err := strconv.ParseInt(value, 10, 64); err == nil && ms >= 0 {
				beat.Uptime = time.Duration(ms) * time.Millisecond
			}
		case "boot":
			beat.BootID = printable(value)
		case "ip":
			if ip := net.ParseIP(value); ip != nil {
				beat.IP = ip.String()
			}
		}
	}
	return beat, true
}

// bootIDMax bounds what a guest may call its boot.
const bootIDMax = 64

// printable keeps a guest's word from playing tricks on a terminal.
func printable(s string) string {
	if len(s) > bootIDMax {
		s = s[:bootIDMax]
	}
	return strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return -1
		}
		return r
	}, s)
}
