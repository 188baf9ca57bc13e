package control_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/guest/control"
)

func TestSizesAreReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int64Range(0, 1<<62).Draw(t, "size")
		text := control.FormatSize(want)
		if got, err := control.ParseSize(text); err != nil || got != want {
			t.Fatalf("%d is written %q and read %d, %v", want, text, got, err)
		}
	})
	for _, bad := range []string{"", "M", "-1", "1T", "1.5G", "99999999999G", "0x10", "1 M"} {
		if got, err := control.ParseSize(bad); err == nil {
			t.Errorf("%q was read as %d", bad, got)
		}
	}
}

func TestHeartbeatsAreReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := control.Heartbeat{
			Count: rapid.Uint64().Draw(t, "count"), UptimeMS: rapid.Int64Min(0).Draw(t, "up"),
			Boot: rapid.StringMatching(`[0-9a-f]{16}`).Draw(t, "boot"),
			IP:   rapid.SampledFrom([]string{"", "10.0.2.15"}).Draw(t, "ip"),
		}
		line := string(want.AppendTo(nil))
		if got, err := control.ParseHeartbeat(strings.TrimSuffix(line, "\n")); err != nil || got != want {
			t.Fatalf("%q is read as %+v, %v", line, got, err)
		}
	})
}

func FuzzLines(f *testing.F) {
	f.Add("dirty rate=20M set=64M pattern=random id=7")
	f.Add("hb 42 up=8400 boot=1f0c ip=none")
	f.Add("status = == id= id=-1")
	f.Fuzz(func(t *testing.T, line string) {
		if r, err := control.ParseRequest(line); err == nil && r.Verb == "" {
			t.Errorf("%q has no verb and was accepted", line)
		}
		if h, err := control.ParseHeartbeat(line); err == nil {
			if again, err := control.ParseHeartbeat(strings.TrimSuffix(string(h.AppendTo(nil)), "\n")); err != nil || again != h {
				t.Errorf("%q is read as %+v, and that again as %+v, %v", line, h, again, err)
			}
		}
	})
}

// script is a guest that answers each request line by what say returns.
func script(t *testing.T, say func(control.Request) string) *control.Client {
	t.Helper()
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(there); lines.Scan(); {
			if lines.Text() == "" {
				continue
			}
			r, err := control.ParseRequest(lines.Text())
			if err != nil {
				t.Errorf("client sent %q: %v", lines.Text(), err)
				return
			}
			if _, err := there.Write([]byte(say(r))); err != nil {
				return
			}
		}
	}()
	c := control.NewClient(here)
	t.Cleanup(func() {
		_ = c.Close()
		_ = there.Close()
		<-done
	})
	return c
}

func answer(t *testing.T, id uint64, result any) string {
	t.Helper()
	line, err := control.Answer(id, result)
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}

func TestClientSkipsWhatAnEarlierClientLeftBehind(t *testing.T) {
	c := script(t, func(r control.Request) string {
		return `mp":3}` + "\n" + answer(t, r.ID+1000, control.Status{Boot: "stale"}) + answer(t, r.ID, control.Status{Boot: "mine"})
	})
	for range 3 {
		s, err := c.Status(t.Context())
		if err != nil || s.Boot != "mine" {
			t.Fatalf("%+v, %v", s, err)
		}
	}
}

func TestClientGivesUpOnANoisyPort(t *testing.T) {
	c := script(t, func(control.Request) string { return strings.Repeat("noise\n", 1000) })
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("noise was taken for a status")
	}
}

func TestRefusalsCarryTheGuestsWords(t *testing.T) {
	c := script(t, func(r control.Request) string { return answer(t, r.ID, control.Failure{Error: "no such page"}) })
	_, err := c.Corrupt(t.Context(), 7)
	if !errors.Is(err, control.ErrRefused) || err.Error() != "guest corrupt page=7: guest refused: no such page" {
		t.Error(err)
	}
}

func TestRequestsSayWhatIsAsked(t *testing.T) {
	var got control.Request
	c := script(t, func(r control.Request) string {
		got = r
		return answer(t, r.ID, control.Checksum{OK: true, Pages: 5})
	})
	if _, err := c.Dirty(t.Context(), control.DirtyOptions{Rate: 20 << 20, Set: 64 << 20, Pattern: "random"}); err != nil {
		t.Fatal(err)
	}
	if want := "map[pattern:random rate:20M set:64M]"; got.Verb != "dirty" || fmt.Sprint(got.Args) != want {
		t.Errorf("sent %s %v, want %s", got.Verb, got.Args, want)
	}
	if sum, err := c.Checksum(t.Context()); err != nil || !sum.OK || sum.Pages != 5 || got.Verb != "checksum" {
		t.Errorf("%+v, %v", sum, err)
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	c := script(t, func(control.Request) string { return "" }) // a guest that never answers
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call ended with %v", err)
	}
}
