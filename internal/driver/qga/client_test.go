package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// agent plays qemu-guest-agent on a unix socket: synchronisations as the real one, all else as say wants it. Nothing is sent for "".
func agent(t *testing.T, say func(command string) string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn, say)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return path
}

func serve(conn net.Conn, say func(command string) string) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		text := lines.Bytes()
		if i := bytes.LastIndexByte(text, delimiter); i >= 0 { // it forgets what came before
			text = text[i+1:]
			fmt.Fprint(conn, `{"error": {"class": "GenericError", "desc": "JSON parse error, stray '\xff'"}}`+"\n") // as the real one of 7.2
		}
		var c struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if json.Unmarshal(text, &c) != nil {
			continue
		}
		answer := ""
		switch c.Execute {
		case "guest-sync-delimited":
			answer = say(c.Execute) + fmt.Sprintf("\xff{\"return\": %d}\n", c.Arguments.ID)
		case "guest-ping":
			answer = "{\"return\": {}}\n"
		default:
			answer = say(c.Execute)
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func dial(t *testing.T, say func(string) string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), agent(t, say))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The words of qemu-guest-agent 7.2 in Debian 12.
func TestAGuestSaysWhatItIs(t *testing.T) {
	c := dial(t, func(command string) string {
		return map[string]string{
			"guest-info":          `{"return": {"version": "7.2.22", "supported_commands": [{"enabled": true, "name": "guest-ping", "success-response": true}]}}` + "\n",
			"guest-get-host-name": `{"return": {"host-name": "web-1"}}` + "\n",
			"guest-get-osinfo":    `{"return": {"name": "Debian GNU/Linux", "kernel-release": "6.1.0-56-cloud-amd64", "version": "12 (bookworm)", "pretty-name": "Debian GNU/Linux 12 (bookworm)", "id": "debian"}}` + "\n",
			"guest-network-get-interfaces": `{"return": [` +
				`{"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}, {"ip-address-type": "ipv6", "ip-address": "::1", "prefix": 128}], "hardware-address": "00:00:00:00:00:00"}, ` +
				`{"name": "enp0s16", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.11.0.2", "prefix": 24}, {"ip-address-type": "ipv6", "ip-address": "fe80::5054:ff:fe12:3456", "prefix": 64}, {"ip-address-type": "ipv6", "ip-address": "2001:db8::7", "prefix": 64}], "hardware-address": "52:54:00:12:34:56"}, ` +
				`{"name": "dummy0", "hardware-address": "52:54:00:00:00:01"}]}` + "\n",
			"guest-fsfreeze-status": `{"return": "thawed"}` + "\n",
			"guest-fsfreeze-freeze": `{"return": 2}` + "\n",
			"guest-fsfreeze-thaw":   `{"error": {"class": "CommandNotFound", "desc": "Command guest-fsfreeze-thaw has been disabled"}}` + "\n",
		}[command]
	})
	if v, err := c.Version(t.Context()); v != "7.2.22" || err != nil {
		t.Error(v, err)
	}
	if v, err := c.Hostname(t.Context()); v != "web-1" || err != nil {
		t.Error(v, err)
	}
	if v, err := c.System(t.Context()); v != "Debian GNU/Linux 12 (bookworm)" || err != nil {
		t.Error(v, err)
	}
	nics, err := c.NICs(t.Context())
	if got := fmt.Sprint(nics); err != nil || got != "[{enp0s16 52:54:00:12:34:56 [10.11.0.2/24 2001:db8::7/64]} {dummy0 52:54:00:00:00:01 []}]" {
		t.Error(got, err)
	}
	if frozen, err := c.Frozen(t.Context()); frozen || err != nil {
		t.Error(frozen, err)
	}
	if n, err := c.Freeze(t.Context()); n != 2 || err != nil {
		t.Error(n, err)
	}
	_, err = c.Thaw(t.Context())
	if refusal, ok := errors.AsType[*Error](err); !ok || !fault.Is(err, fault.Incompatible) || Lost(err) || !strings.Contains(refusal.Desc, "disabled") {
		t.Error(err)
	}
}

// An answer that comes too late must not be taken for that of the next call.
func TestALateAnswerIsNobodys(t *testing.T) {
	late := ""
	c := dial(t, func(command string) string {
		switch command {
		case "guest-get-host-name":
			late = `{"return": {"host-name": "late"}}` + "\n"
			return "" // now not, but before the next
		case "guest-get-osinfo":
			return `{"return": {"pretty-name": "in time"}}` + "\n"
		}
		noise := late
		late = ""
		return noise
	})
	ctx, done := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer done()
	if _, err := c.Hostname(ctx); !fault.Is(err, fault.Unavailable) || Lost(err) {
		t.Fatalf("silence is %v", err)
	}
	for range 2 {
		if got, err := c.System(t.Context()); got != "in time" || err != nil {
			t.Fatal(got, err)
		}
	}
}

func TestAFloodEnds(t *testing.T) {
	endless := strings.Repeat("x", 64<<10)
	for _, tail := range []string{"", "\n", "\xff", "\n\xff{}\n"} {
		path := filepath.Join(t.TempDir(), "agent.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan int)
		go func() {
			sent := 0
			conn, err := l.Accept()
			for err == nil {
				var n int
				n, err = conn.Write([]byte(endless + tail))
				sent += n
			}
			ended <- sent
		}()
		_, err = Dial(t.Context(), path)
		if !fault.Is(err, fault.Unavailable) || !Lost(err) {
			t.Errorf("%q: %v", tail, err)
		}
		if sent := <-ended; sent > 2*SkipMax {
			t.Errorf("%q: %d bytes were taken", tail, sent)
		}
		l.Close()
	}
}

func TestASilentGuestCostsItsDeadlineOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, done := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer done()
	if _, err := Dial(ctx, path); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

func TestShutdownHearsARefusalAndTakesSilenceForYes(t *testing.T) {
	refuse := true
	c := dial(t, func(command string) string {
		if command == "guest-shutdown" && refuse {
			return `{"error": {"class": "GenericError", "desc": "child process has failed to shutdown"}}` + "\n"
		}
		return ""
	})
	if err := c.Shutdown(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	refuse = false
	if err := c.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Ping(t.Context()); err != nil { // and it can be used on
		t.Error(err)
	}
}

func TestAGuestPlaysNoTricksOnATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"web-1": "web-1", "\x1b[2J\x1b]0;evil\x07x\r\n": "[2J ]0;evil x", "a\u202eb\u2066c": "a b c", "\xff\xfe": "", "Größe 日本": "Größe 日本",
		strings.Repeat("é", 100): strings.Repeat("é", 64), " \t ": "",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q is shown as %q, not %q", in, got, want)
		}
	}
}

// FuzzAnswers feeds the decoder and the readers of answers with anything: no panic, no line beyond its bound, the same however the bytes are
// cut, and nothing in a text that is not for showing.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"return": {}}` + "\n", "\xff{\"return\": 7}\n", "\n\r\n{\"error\": {\"class\": \"x\", \"desc\": \"\x1b\"}}\n", "{\"return\": null}\n{", "[[[[\n",
		`{"return": [{"name": "eth0", "hardware-address": "52:54:00:12:34:56", "ip-addresses": [{"ip-address": "10.0.0.1", "prefix": 99}]}]}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		drain := func(d *decoder) (lines []string, skipErr bool) {
			for {
				line, err := d.line()
				if err != nil {
					return lines, d.skip() != nil
				}
				if len(line) == 0 || len(line) > LineMax {
					t.Fatalf("a line of %d bytes", len(line))
				}
				lines = append(lines, string(line))
			}
		}
		whole, _ := drain(newDecoder(bytes.NewReader(text)))
		pieces, _ := drain(newDecoder(iotest.OneByteReader(bytes.NewReader(text))))
		if !reflect.DeepEqual(whole, pieces) {
			t.Fatalf("in one piece %q, in many %q", whole, pieces)
		}
		for _, line := range whole {
			var any any
			if err := read([]byte(line), &any); err != nil {
				if refusal, ok := errors.AsType[*Error](err); ok && (refusal.Desc != Clean(refusal.Desc) || len(refusal.Desc) > TextMax) {
					t.Fatalf("%q is not clean", refusal.Desc)
				}
			}
		}
		if clean := Clean(string(text)); len(clean) > TextMax || clean != Clean(clean) {
			t.Fatalf("%q is not clean", clean)
		}
	})
}
