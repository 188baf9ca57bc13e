package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// files reads an archive: names in order, and texts.
func files(t *testing.T, archive []byte) (names []string, texts map[string]string) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	texts = map[string]string{}
	for r := tar.NewReader(zip); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, texts
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, head.Name)
		texts[head.Name] = string(text)
	}
}

func says(text string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

// The story: one collector fails, one hangs, one panics, one writes without end. The bundle is made all the same, in the time that
// one of them may take, and its index says what is missing.
func TestABundleOfABrokenHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		began := time.Now()
		hang := make(chan struct{})
		defer close(hang)
		m, err := Write(t.Context(), &out, "godwit-host-1", Manifest{Host: "host-1", Version: "1"}, nil, []Item{
			{"good.txt", says("all is well\n")},
			{"half.txt", func(ctx context.Context, w io.Writer) error {
				return errors.Join(says("the first half")(ctx, w), errors.New("disk is gone"))
			}},
			{"hangs.txt", func(_ context.Context, w io.Writer) error { <-hang; return nil }},
			{"panics.txt", func(context.Context, io.Writer) error { panic("oh") }},
			{"long.txt", func(_ context.Context, w io.Writer) error {
				line := strings.Repeat("words of a log; ", 1<<16-1) + "fifteen words.\n\n"
				for range 40 {
					if _, err := io.WriteString(w, line); err != nil {
						return err
					}
				}
				_, err := io.WriteString(w, "the end")
				return err
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != ItemTime {
			t.Errorf("it took %v", took)
		}
		names, texts := files(t, out.Bytes())
		want := "godwit-host-1/manifest.json godwit-host-1/good.txt godwit-host-1/half.txt godwit-host-1/long.txt"
		if got := strings.Join(names, " "); got != want {
			t.Errorf("it has %s", got)
		}
		var read Manifest
		if err := json.Unmarshal([]byte(texts[names[0]]), &read); err != nil || len(read.Items) != 5 {
			t.Fatalf("manifest %v: %s", err, texts[names[0]])
		}
		for i, want := range []string{"", "disk is gone", "it took longer than 15s", "panic: oh", ""} {
			if read.Items[i].Error != want || m.Items[i].Error != want {
				t.Errorf("%s: %q, not %q", read.Items[i].Name, read.Items[i].Error, want)
			}
		}
		if texts["godwit-host-1/half.txt"] != "the first half" {
			t.Errorf("of the half that there was is %q", texts["godwit-host-1/half.txt"])
		}
		long := texts["godwit-host-1/long.txt"]
		if len(long) != ItemMax || !strings.HasSuffix(long, "the end") || read.Items[4].Cut != 40<<20+7-ItemMax {
			t.Errorf("of the long one are %d bytes, and %d are said to be cut", len(long), read.Items[4].Cut)
		}
	})
}

const key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\nq8Zk\n-----END PRIVATE KEY-----\n"

func TestSecretsAreTakenOutAndTheRestStays(t *testing.T) {
	const userData = "#cloud-config\npassword: hunter2hunter2\n"
	inJSON, err := json.Marshal(map[string]any{"user_data": userData, "ssh_keys": []string{"ssh-ed25519 AAAA me"}, "id": "vm-1"})
	if err != nil {
		t.Fatal(err)
	}
	r := new(Redactor)
	r.Know([]byte(key))
	r.Know([]byte("a-secret-of-this-host\nshort\n"))
	for what, c := range map[string]struct{ text, secret, stays string }{
		"key":                   {"before\n" + key + "after", "MIGHAgEAMBMG", "after"},
		"key cut off":           {"log\n" + key[:60], "MIGHAgEAMBMG", "log"},
		"end of a key":          {key[30:] + "log", "q8Zk", "log"},
		"line of a known key":   {"it says MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg there", "MIGHAgEA", "there"},
		"known secret":          {"--key a-secret-of-this-host --short", "a-secret-of-this-host", "--short"},
		"user's token":          {"GODWIT_TOKEN=gwu1.c2VjcmV0LXRva2Vu godwit vm ls", "c2VjcmV0", "godwit vm ls"},
		"token":                 {"godwit join gw1.c2VjcmV0LXRva2Vu --name b", "c2VjcmV0", "--name b"},
		"user data":             {string(inJSON), "hunter2", `"id":"vm-1"`},
		"user data, indented":   {`{"userData": "runcmd: [\"x y\"]", "b": 1}`, "runcmd", `"b": 1`},
		"password in a line":    {"user: me\npassword: hunter2hunter2\nshell: sh", "hunter2", "shell: sh"},
		"hash":                  {"root:$6$abcdefgh$ijklmnopqrstuv:1", "ijklmn", "root:"},
		"raw record":            {`"raw": "` + base64.StdEncoding.EncodeToString([]byte("xx"+userData)) + `"`, "aHVudGVy", `"raw"`},
		"raw record in a log":   {"raw=" + base64.StdEncoding.EncodeToString([]byte("xx"+userData)) + " next", "aHVudGVy", "next"},
		"raw record with key":   {base64.RawURLEncoding.EncodeToString([]byte("\x0a\x10a-secret-of-this-host")), "c2VjcmV0", ""},
		"answer of a repeat":    {`"answer": "Z3cxLnNlY3JldA==", "host": "a"`, "Z3cx", `"host": "a"`},
		"hash of a join secret": {`"secret_hash":"n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=","id":"t"`, "n4bQgYh", `"id":"t"`},
	} {
		t.Run(what, func(t *testing.T) {
			got, n := r.Redact([]byte(c.text))
			if strings.Contains(string(got), c.secret) || n == 0 {
				t.Errorf("it is still there (%d taken out): %s", n, got)
			}
			if !strings.Contains(string(got), c.stays) || !strings.Contains(string(got), Gone) {
				t.Errorf("too much is gone: %s", got)
			}
			if again, _ := r.Redact(got); string(again) != string(got) {
				t.Errorf("redacted again it is %s", again)
			}
		})
	}
	for _, plain := range []string{
		`{"state":"running","generation":"12","user_data":""}`, "-uuid 5c1d2f3e-0000-4000-8000-000000000001 -machine pc-q35-10.0",
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk me@desk", "level=INFO msg=\"token made\" life=1h",
	} {
		if got, n := r.Redact([]byte(plain)); string(got) != plain || n != 0 {
			t.Errorf("%d secrets found in %q: %q", n, plain, got)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte(key), "seed")
	f.Add([]byte(`{"user_data":"`), "gw1.x")
	f.Fuzz(func(t *testing.T, text []byte, token string) {
		r := new(Redactor)
		secret := fmt.Sprintf("%x-a-known-secret", token)
		r.Know([]byte(secret))
		got, _ := r.Redact(append(append(text, ' '), secret...))
		if bytes.Contains(got, []byte(secret)) {
			t.Errorf("%q keeps %q", got, secret)
		}
	})
}
