//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/guest/control"
)

const help = `status     how the guest is
dirty      dirty rate=20M set=64M pattern=random; dirty stop
checksum   verify the memory under test
poweroff   turn the guest off
reboot     restart it
`

// serveConsole answers a person on ttyS0. It knows what the control protocol knows and says it in words.
func (g *guest) serveConsole(ctx context.Context) error {
	prompt := func() { _, _ = fmt.Fprint(g.console, "godwit-guest> ") } // nobody else to tell
	for {
		lines := bufio.NewScanner(g.console)
		lines.Buffer(make([]byte, control.LineMax), 2*control.LineMax) // the terminal itself ends a line at 4096
		prompt()
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" {
				_, _ = fmt.Fprint(g.console, g.converse(ctx, line))
			}
			prompt()
		}
		if lines.Err() != nil {
			return lines.Err()
		}
		if err := sleep(ctx, time.Second); err != nil { // Ctrl-D: there is nothing to leave, so begin anew
			return err
		}
	}
}

// converse answers one line.
func (g *guest) converse(ctx context.Context, line string) string {
	if line == "help" || line == "?" {
		return help
	}
	request, err := control.ParseRequest(line)
	if err != nil {
		return err.Error() + "\n"
	}
	result, err := g.answer(ctx, request)
	if err != nil {
		return strings.Replace(err.Error(), "use status", "use help, status", 1) + "\n"
	}
	switch r := result.(type) {
	case control.Checksum:
		return r.String() + "\n"
	case control.Status:
		up := time.Duration(r.UptimeMS) * time.Millisecond
		text := fmt.Sprintf("up %v, heartbeat %d, ip %s, kernel %s, boot %s\n", up, r.Heartbeat, g.address("none"), r.Kernel, r.Boot)
		if d := r.Dirty; d != nil {
			text += fmt.Sprintf("memory under test %s, %d pages written, writer running: %t (%s at %s/s)\n",
				control.FormatSize(d.Set), d.Writes, d.Running, d.Pattern, control.FormatSize(d.Rate))
		}
		return text
	default:
		return fmt.Sprintf("%+v\n", result)
	}
}
