package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// MessageBytesMax bounds one message of QEMU. The longest that 10.0 sends, its whole schema, has 0.25 MB.
const MessageBytesMax = 8 << 20

// message is anything that QEMU sends: a greeting, an event, or a reply with a result or an error.
type message struct {
	Greeting  *Greeting       `json:"QMP"`
	Event     string          `json:"event"`
	Timestamp timestamp       `json:"timestamp"`
	Data      json.RawMessage `json:"data"`
	ID        *uint64         `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *replyError     `json:"error"`
}

// replyError is the error member of a reply.
type replyError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// timestamp is QEMU's host clock at an event; both members are -1 when QEMU could not read it.
type timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// time returns the moment, or the zero time when QEMU had none.
func (t timestamp) time() time.Time {
	if t.Seconds < 0 || t.Microseconds < 0 {
		return time.Time{}
	}
	return time.Unix(t.Seconds, t.Microseconds*int64(time.Microsecond))
}

// Greeting is what QEMU says first on a connection.
type Greeting struct {
	Version      Version  `json:"version"`
	Capabilities []string `json:"capabilities"`
}

// Version is QEMU's version. It is for people and for cache keys; abilities are probed by name.
type Version struct {
	QEMU struct {
		Major int `json:"major"`
		Minor int `json:"minor"`
		Micro int `json:"micro"`
	} `json:"qemu"`
	Package string `json:"package"`
}

// decoder reads messages. QEMU ends each with CR LF and puts no line break inside one (QMP specification, "General
// Definitions"), so a line is a message.
type decoder struct{ lines *bufio.Scanner }

// newDecoder returns a decoder of r that refuses messages longer than max bytes.
func newDecoder(r io.Reader, bytesMax int) *decoder {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, min(4096, bytesMax)), bytesMax)
	return &decoder{lines: lines}
}

// next returns the next message, io.EOF after the last. Any other error ends the stream: what follows cannot be trusted.
func (d *decoder) next() (message, error) {
	for d.lines.Scan() {
		line := bytes.TrimSpace(d.lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return message{}, fault.New(fault.Internal, "message is no QMP: %w", err)
		}
		// json.RawMessage copies, so nothing of m points into the scanner's buffer.
		return m, m.check()
	}
	if err := d.lines.Err(); err != nil {
		return message{}, err
	}
	return message{}, io.EOF
}

// check refuses a message that is not exactly one of the three kinds.
func (m *message) check() error {
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Event != "", m.Return != nil, m.Error != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return fault.New(fault.Internal, "message is not one of greeting, event, return and error")
	}
	if m.ID == nil && (m.Return != nil || m.Error != nil) {
		// We number every command, so QEMU could not read what we sent: the two sides disagree on where a message ends.
		if m.Error != nil {
			return fault.New(fault.Internal, "qemu could not read a command: %s", m.Error.Desc)
		}
		return fault.New(fault.Internal, "reply without an id")
	}
	return nil
}
