package qga

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The bounds of what is read from a guest.
const (
	LineMax = 256 << 10 // of one answer: the addresses of about 400 network cards
	SkipMax = 4 << 20   // of all that comes during one call, older answers included
)

// delimiter stands before the answer to guest-sync-delimited. It is in no UTF-8 text.
const delimiter = 0xff

// decoder cuts what a guest sends into lines.
type decoder struct {
	in   *bufio.Reader
	read int // bytes since begin
}

func newDecoder(r io.Reader) *decoder { return &decoder{in: bufio.NewReaderSize(r, 4096)} }

// begin allows SkipMax bytes more.
func (d *decoder) begin() { d.read = 0 }

// line returns the next line that is not empty, without its end. It is the caller's.
func (d *decoder) line() ([]byte, error) {
	var line []byte
	for {
		part, err := d.next('\n')
		if len(line)+len(part) > LineMax {
			return nil, fault.New(fault.Unavailable, "%w", errFlood)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if line = bytes.Trim(line, "\r\n"); len(line) > 0 {
			return line, nil
		}
	}
}

// skip reads on until behind a delimiter.
func (d *decoder) skip() error {
	for {
		if _, err := d.next(delimiter); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// next returns what comes up to the byte end, or with bufio.ErrBufferFull a part of it.
func (d *decoder) next(end byte) ([]byte, error) {
	part, err := d.in.ReadSlice(end)
	if d.read += len(part); d.read > SkipMax {
		return nil, fault.New(fault.Unavailable, "%w", errFlood)
	}
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, ended(err)
	}
	return part, err
}

// ended says why nothing more comes or goes. A deadline is not the end: the connection can be used on.
func ended(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fault.New(fault.Unavailable, "%w", err)
	}
	return fault.New(fault.Unavailable, "%w: %w", errEnded, err)
}
