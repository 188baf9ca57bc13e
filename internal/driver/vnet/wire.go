package vnet

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// The trunk protocol, version 1. A message is
//
//	length (4)  kind (1)  network (8)  body          length counts from kind on; all numbers are big-endian
//
//	hello      version (2) host                      first message of both sides
//	keepalive                                        whenever nothing was sent for keepaliveEvery
//	data       frame
//	forward    mac (6) migration (16) sequence (8) frame
//	moved      mac (6) migration (16) number (8) source-host
//	flush      mac (6) migration (16) origin-host target-host
//	ack        mac (6) migration (16)
//	end        mac (6) migration (16) number (8)
//
// Hosts are a length byte and the name. Networks and migrations travel as hashes of their ids, so that a frame's
// overhead is 13 bytes. Unknown kinds are skipped: a later version may add some.
type kind byte

const (
	kindData kind = iota + 1
	kindForward
	kindMoved
	kindFlush
	kindAck
	kindEnd
	kindKeepalive
	kindHello
)

const (
	trunkVersion = 1
	trunkALPN    = "godwit-trunk/1"
	messageHead  = 1 + 8
	messageMax   = frameMax + 1024 // a frame and the longest head with room to grow
)

type (
	netKey uint64
	migKey [16]byte
)

// control is what a message carries besides network and frame.
type control struct {
	mac    mac
	mig    migKey
	number uint64           // forward: sequence; moved, end: how often the address has moved; hello: version
	host   inventory.HostID // moved: source; flush: origin; hello: who speaks
	target inventory.HostID // flush
}

func keyOfNetwork(id inventory.NetworkID) netKey {
	h := sha256.Sum256([]byte("godwit network " + id))
	return netKey(binary.BigEndian.Uint64(h[:]))
}

func keyOfMigration(id inventory.MigrationID) migKey {
	h := sha256.Sum256([]byte("godwit migration " + id))
	return migKey(h[:16])
}

// appendMessage appends the item as it goes over a trunk.
func appendMessage(b []byte, it item) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(it.kind))
	b = binary.BigEndian.AppendUint64(b, uint64(it.net))
	if c := it.ctl; c != nil {
		switch it.kind {
		case kindForward, kindMoved, kindEnd:
			b = append(append(b, c.mac[:]...), c.mig[:]...)
			b = binary.BigEndian.AppendUint64(b, c.number)
			if it.kind == kindMoved {
				b = appendHost(b, c.host)
			}
		case kindFlush:
			b = append(append(b, c.mac[:]...), c.mig[:]...)
			b = appendHost(appendHost(b, c.host), c.target)
		case kindAck:
			b = append(append(b, c.mac[:]...), c.mig[:]...)
		case kindHello:
			b = binary.BigEndian.AppendUint16(b, uint16(c.number))
			b = appendHost(b, c.host)
		case kindData, kindKeepalive:
		}
	}
	if it.frame != nil {
		b = append(b, it.frame.data...)
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

func appendHost(b []byte, id inventory.HostID) []byte {
	id = id[:min(len(id), 255)]
	return append(append(b, byte(len(id))), id...)
}

var errShort = errors.New("message cut short")

// parseMessage reads one message without its length. Frames are copied, so b may be reused. An unknown kind is returned
// as it is, without content.
func parseMessage(b []byte) (item, error) {
	if len(b) < messageHead {
		return item{}, errShort
	}
	it := item{kind: kind(b[0]), net: netKey(binary.BigEndian.Uint64(b[1:]))}
	b = b[messageHead:]
	if it.kind == kindData {
		var err error
		it.frame, err = parseFrame(b)
		return it, err
	}
	return parseControl(it, b)
}

// parseControl is parseMessage for what is no plain frame; apart because it allocates.
func parseControl(it item, b []byte) (item, error) {
	var c control
	var err error
	switch it.kind {
	case kindForward, kindMoved, kindEnd, kindFlush, kindAck:
		if len(b) < 22 {
			return item{}, errShort
		}
		c.mac, c.mig, b = mac(b[:6]), migKey(b[6:22]), b[22:]
		if it.kind == kindForward || it.kind == kindMoved || it.kind == kindEnd {
			if len(b) < 8 {
				return item{}, errShort
			}
			c.number, b = binary.BigEndian.Uint64(b), b[8:]
		}
		if it.kind == kindMoved || it.kind == kindFlush {
			if c.host, b, err = parseHost(b); err != nil {
				return item{}, err
			}
		}
		if it.kind == kindFlush {
			if c.target, _, err = parseHost(b); err != nil {
				return item{}, err
			}
		}
		if it.kind == kindForward {
			if it.frame, err = parseFrame(b); err != nil {
				return item{}, err
			}
		}
	case kindHello:
		if len(b) < 2 {
			return item{}, errShort
		}
		c.number = uint64(binary.BigEndian.Uint16(b))
		if c.host, _, err = parseHost(b[2:]); err != nil {
			return item{}, err
		}
	case kindData, kindKeepalive:
		return it, nil
	default:
		return it, nil
	}
	it.ctl = &c
	return it, nil
}

func parseHost(b []byte) (inventory.HostID, []byte, error) {
	if len(b) < 1 || len(b) < 1+int(b[0]) {
		return "", nil, errShort
	}
	n := 1 + int(b[0])
	return inventory.HostID(b[1:n]), b[n:], nil
}

func parseFrame(b []byte) (*frame, error) {
	if len(b) < headerLen || len(b) > frameMax {
		return nil, fmt.Errorf("frame of %d bytes: at least %d and at most %d are carried", len(b), headerLen, frameMax)
	}
	return copyFrame(b), nil
}

// readMessage reads the next message of a trunk. Its error ends the trunk: there is no way to find the next boundary.
func readMessage(r *bufio.Reader) (item, error) {
	b, err := readBlock(r, messageMax)
	if err != nil {
		return item{}, err
	}
	it, err := parseMessage(b)
	_, _ = r.Discard(len(b)) // b is what Peek showed: it cannot fail
	return it, err
}

// readFrame reads the next frame of a port; frames too short to be one are skipped and counted in runts.
func readFrame(r *bufio.Reader, runts *uint64) (*frame, error) {
	for {
		b, err := readBlock(r, frameMax)
		if err != nil {
			return nil, err
		}
		var f *frame
		if len(b) >= headerLen {
			f = copyFrame(b)
		} else {
			*runts++
		}
		_, _ = r.Discard(len(b)) // as above
		if f != nil {
			return f, nil
		}
	}
}

// readBlock returns the next block behind a 4-byte length, still in r's buffer, which must hold sizeMax bytes.
func readBlock(r *bufio.Reader, sizeMax int) ([]byte, error) {
	head, err := r.Peek(4)
	if err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if uint64(n) > uint64(sizeMax) {
		return nil, fmt.Errorf("block of %d bytes: at most %d are allowed", n, sizeMax)
	}
	_, _ = r.Discard(4) // Peek showed them
	b, err := r.Peek(int(n))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// blockBuffered reports whether the next block can be read without waiting.
func blockBuffered(r *bufio.Reader) bool {
	if r.Buffered() < 4 {
		return false
	}
	head, err := r.Peek(4)
	return err == nil && uint64(r.Buffered()) >= 4+uint64(binary.BigEndian.Uint32(head))
}
