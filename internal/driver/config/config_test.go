package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheFirstSourceCounts(t *testing.T) {
	path := write(t, `
data = "/srv/godwit"      # of the file alone
log-level = "warn"        # of the file, and overruled
user = "from-file"
[log-levels]
agent = "debug"
[limits]
calls = 1_000
request-size = "2M"
header-timeout = "750ms"
[networks.lan]
bridge = "br0"
[networks]
dmz = { uplink = "eth1" }
`)
	c, err := Resolve(Input{File: path, Given: []Value{
		{Key: "log-level", Text: "debug", From: Environment, Where: "GODWIT_DEBUG"},
		{Key: "log-level", Text: "error", From: Flag, Where: "--log-level"},
		{Key: "limits.streams", Text: "7", From: Environment, Where: "GODWIT_LIMITS_STREAMS"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c, err = c.Under([]Value{
		{Key: "user", Text: "from-init", From: Init, Where: "host.json"},
		{Key: "qemu", Text: "/opt/qemu", From: Init, Where: "host.json"},
		{Key: "probe-cache", Text: "", From: Init, Where: "host.json"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != "/srv/godwit" || c.Run != "/run/godwit" || c.User != "from-file" || c.Binary != "/opt/qemu" || c.Cache != "/var/cache/godwit" {
		t.Errorf("%+v", c)
	}
	if c.Level("agent") != slog.LevelDebug || c.Level("switch") != slog.LevelError {
		t.Errorf("levels %v and %v", c.Level("agent"), c.Level("switch"))
	}
	if l := c.Limits; l.Calls != 1000 || l.Streams != 7 || l.RequestSize != 2<<20 || l.HeaderTimeout != 750*time.Millisecond || l.Handshakes != 128 {
		t.Errorf("%+v", l)
	}
	if c.Networks["lan"] != (Network{Bridge: "br0"}) || c.Networks["dmz"] != (Network{Uplink: "eth1"}) || len(c.Networks) != 2 {
		t.Errorf("%+v", c.Networks)
	}
	for key, want := range map[string]Value{
		"data":                 {Text: "/srv/godwit", From: File, Where: path + ":2"},
		"log-level":            {Text: "error", From: Flag, Where: "--log-level"},
		"limits.streams":       {Text: "7", From: Environment, Where: "GODWIT_LIMITS_STREAMS"},
		"limits.calls":         {Text: "1000", From: File, Where: path + ":8"},
		"user":                 {Text: "from-file", From: File, Where: path + ":4"},
		"qemu":                 {Text: "/opt/qemu", From: Init, Where: "host.json"},
		"probe-cache":          {Text: "/var/cache/godwit", From: Default},
		"networks.lan.bridge":  {Text: "br0", From: File, Where: path + ":12"},
		"networks.dmz.uplink":  {Text: "eth1", From: File, Where: path + ":14"},
		"limits.header-bytes?": {},
	} {
		got := c.Value(key)
		if want.Key = key; want.Text == "" {
			want.Key = ""
		}
		if got != want {
			t.Errorf("%s is %+v, not %+v", key, got, want)
		}
	}
	if n := len(c.Values()); n != len(Settings())+2 {
		t.Errorf("%d values are shown", n)
	}
}

func TestNoFileIsNoError(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "config.toml")
	c, err := Resolve(Input{File: missing})
	if err != nil || c.Limits.Connections != 1024 || c.LogLevel != slog.LevelInfo {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := Resolve(Input{File: missing, Must: true}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a file that somebody named: %v", err)
	}
	if _, err := Resolve(Input{File: t.TempDir(), Must: true}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "it is no file") {
		t.Errorf("a folder: %v", err)
	}
}

// Whoever mends a configuration wants to do it once.
func TestEverythingThatIsWrongIsSaidAtOnce(t *testing.T) {
	path := write(t, `dta = "/srv"
run = "relative"
log-level = "loud"
user = 7
socket-grup = "staff"
[limits]
calls = "many"
streams = "9"
calls-per-secnd = 1
connections = -4
request-size = "2 potatoes"
idle-timeout = "90"
[log-levels]
agnt = "debug"
store = "verbose"
[netwoks.lan]
bridge = "br0"
[networks.lan]
birdge = "br0"
[networks.both]
bridge = "br0"
uplink = "eth0"
[networks.UPPER]
bridge = "br0"
[networks.long]
bridge = "a-name-that-is-too-long"
[[limits.calls-burst]]
x = 1
`)
	_, err := Resolve(Input{File: path})
	if !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(strings.Join(fault.Reasons(err), "\n"), path, "F")
	const want = `F:1: unknown key dta: did you mean data?
F:2: run: "relative" is no absolute path
F:3: log-level: "loud" is no log level: debug, info, warn or error
F:4: user wants a text in quotes
F:5: unknown key socket-grup: did you mean socket-group?
F:7: limits.calls wants a number, without quotes
F:8: limits.streams wants a number, without quotes
F:9: unknown key limits.calls-per-secnd: did you mean limits.calls-per-second?
F:10: limits.connections: "-4" is no number from 1 to 1048576
F:11: limits.request-size: size "2 potatoes" is no size: write a number with K, M, G or T, like 512M or 2G
F:12: limits.idle-timeout: "90" is no time: write it as 500ms, 10s or 2m
F:14: unknown key log-levels.agnt: did you mean log-levels.agent?
F:15: log-levels.store: "verbose" is no log level: debug, info, warn or error
F:16: unknown table netwoks.lan: did you mean networks?
F:19: unknown key networks.lan.birdge: did you mean networks.lan.bridge?
F:20: networks.both wants either bridge or uplink
F:23: network name "UPPER" is not usable: take 1 to 63 lower-case letters, digits and dashes, like web-1
F:26: networks.long.bridge: "a-name-that-is-too-long" is no name of a network interface: 1 to 15 characters without space, slash and colon
F:27: limits.calls-burst wants a number, without quotes`
	if got != want {
		t.Errorf("it says\n%s\nnot\n%s", got, want)
	}
}

func TestSyntaxErrorsNameTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"data = \"/srv\"\nrun = /run\n":                 ":2: ",
		"[limits]\ncalls = 1\ncalls = 2\n":              ":3: ",
		"data = \"/a\"\n\n\n[limits\n":                  ":4: ",
		"data = \"" + string([]byte{0xff, 0xfe}) + "\"": ":1: ",
	} {
		path := write(t, text)
		_, err := Resolve(Input{File: path})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), path+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSettingsThatDoNotFitTogether(t *testing.T) {
	_, err := Resolve(Input{File: write(t, "data = \"/x\"\nrun = \"/x/\"\n[limits]\nconnections = 10\nstreams = 300\n")})
	if n := len(fault.Reasons(err)); n != 3 || !fault.Is(err, fault.Invalid) {
		t.Errorf("%d reasons: %v", n, err)
	}
}

// Check looks at the machine too, and blames only what somebody has set.
func TestCheckLooksAtTheMachine(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	path := write(t, fmt.Sprintf(`data = %q
run = %q
probe-cache = %q
qemu = "/no/such/qemu"
user = "no-such-user"
socket-group = "no-such-group"
watchdog-device = "/dev/no-dog"
[networks.a]
bridge = "lo"
[networks.b]
uplink = "nolink9"
`, plain, filepath.Join(dir, "new"), filepath.Join(dir, "no", "way")))
	_, err := Check(Input{File: path})
	if !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(strings.ReplaceAll(strings.Join(fault.Reasons(err), "\n"), path, "F"), dir, "D")
	for _, line := range []string{
		"F:1: data: D/plain is no folder", "F:3: probe-cache: neither D/no/way nor the folder it would be in is there",
		"F:4: qemu: /no/such/qemu: no such file", `F:5: user: this machine has no user "no-such-user"`, `F:6: socket-group: this machine has no group "no-such-group"`,
		"F:7: watchdog-device: /dev/no-dog: no such file",
		`F:9: networks.a.bridge: "lo" is no bridge`, `F:11: networks.b.uplink: this machine has no network interface "nolink9"`,
	} {
		if !strings.Contains(got, line) {
			t.Errorf("it does not say %q, but\n%s", line, got)
		}
	}
	if strings.Contains(got, "F:2:") || len(fault.Reasons(err)) != 8 {
		t.Errorf("it blames too much:\n%s", got)
	}
	if _, err := Check(Input{File: write(t, "log-level = \"debug\"\n[networks.a]\nuplink = \"lo\"\n")}); err != nil {
		t.Errorf("all is well: %v", err)
	}
}

func TestFlagsThatAreWrongNameThemselves(t *testing.T) {
	_, err := Resolve(Input{Given: []Value{{Key: "limits.calls", Text: "x", From: Flag, Where: "--limits-calls"}}})
	if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), `--limits-calls: "x" is no number`) {
		t.Error(err)
	}
}

func TestNearest(t *testing.T) {
	for key, want := range map[string]string{"calls": "limits.calls", "log-leve": "log-level", "zzz": "", "limits.cals": "limits.calls"} {
		if got := nearest(key, []string{"log-level", "limits.calls", "limits.streams"}); got != want {
			t.Errorf("%s is near %q", key, got)
		}
	}
}

// Whatever the file is, reading it ends with a configuration or with reasons, and every number of it is in its bounds.
func FuzzParse(f *testing.F) {
	f.Add([]byte("data = \"/srv\"\n[limits]\ncalls = 3\n[networks.lan]\nbridge = \"br0\"\n"))
	f.Add([]byte("[networks]\na = { bridge = \"x\", uplink = { y = 1 } }\n[[limits]]\n"))
	f.Add([]byte("a.b.c = [1, {x = 2}]\n\"\" = 1\n[\"networks\".\"\"]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parse(text)
		if err != nil {
			if p, ok := errors.AsType[problem](err); !ok || p.err == nil {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		c, _ := resolve(Input{})
		networks := map[string]int{}
		for _, e := range entries {
			if len(e.key) == 0 || e.line < 1 {
				t.Fatalf("%q: entry %+v", text, e)
			}
			_ = c.take("F", e, networks)
		}
		if l := c.Limits; l.Calls < 1 || l.Calls > countMax || l.RequestSize < inventory.Bytes(64<<10) || l.IdleTimeout < durationMin {
			t.Errorf("%q: %+v", text, l)
		}
	})
}

// A watchdog is a device, a socket of those who only play at being machines, or none.
func TestWatchdogNames(t *testing.T) {
	for text, good := range map[string]bool{"": true, "/dev/watchdog1": true, "unix:/run/dog": true, "watchdog0": false, "unix:dog": false, "tcp:/x": false} {
		c, err := Resolve(Input{Given: []Value{{Key: "watchdog-device", Text: text, From: Flag, Where: "--watchdog-device"}}})
		if good != (err == nil) || good && c.Watchdog != text {
			t.Errorf("%q: %v", text, err)
		}
	}
	if c, err := Resolve(Input{}); err != nil || c.Watchdog != "/dev/watchdog" {
		t.Errorf("unless it is said otherwise it is %q (%v)", c.Watchdog, err)
	}
}
