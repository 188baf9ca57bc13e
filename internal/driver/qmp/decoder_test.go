package qmp

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzDecoder feeds the decoder with anything. It must not panic, not depend on how the bytes are cut, keep to its bound, and
// return only messages that are exactly one of the kinds.
func FuzzDecoder(f *testing.F) {
	for _, seed := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\r\n",
		`{"timestamp": {"seconds": 1700000000, "microseconds": 42}, "event": "MIGRATION", "data": {"status": "completed"}}` + "\r\n",
		`{"return": {"running": true, "status": "running"}, "id": 7}` + "\r\n" + `{"return": [], "id": 8}`,
		`{"error": {"class": "GenericError", "desc": "no"}, "id": 9}` + "\n\n\r\n" + `{"return": null, "id": 1}`,
		`{"event": "MIGRATION_PASS", "data": {"pass": -1}, "timestamp": {"seconds": -1, "microseconds": -1}}`,
		`{"error": {"desc": "JSON parse error"}}`,
		`{"event": "X", "return": {}, "id": 18446744073709551616}`,
		`{"event": "STOP", "data": "a string", "timestamp": {"seconds": 1e300}}`,
		"{\"event\": \"\x00\"}", "[]", "null", "{", strings.Repeat("[", 200), strings.Repeat(" ", 600),
	} {
		f.Add([]byte(seed))
	}
	const bytesMax = 512
	f.Fuzz(func(t *testing.T, text []byte) {
		whole, err := drain(newDecoder(bytes.NewReader(text), bytesMax))
		pieces, errPieces := drain(newDecoder(iotest.OneByteReader(bytes.NewReader(text)), bytesMax))
		if !reflect.DeepEqual(whole, pieces) || (err == nil) != (errPieces == nil) {
			t.Fatalf("in one piece %v, %v; in many %v, %v", whole, err, pieces, errPieces)
		}
		for _, m := range whole {
			if len(m.Data)+len(m.Return) > bytesMax {
				t.Fatalf("a message of more than %d bytes", bytesMax)
			}
			if m.Greeting == nil && m.Event == "" && m.ID == nil {
				t.Fatalf("a message for nobody: %+v", m)
			}
			if m.Return != nil && m.Error != nil {
				t.Fatalf("a result and an error: %+v", m)
			}
			e := Event{Name: m.Event, Time: m.Timestamp.time(), Data: m.Data}
			_, _, _ = e.Migration(), e.Pass(), e.Cause() // must not panic either
		}
	})
}

// drain reads all messages; the end of the stream is no error.
func drain(d *decoder) ([]message, error) {
	var all []message
	for {
		m, err := d.next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}
