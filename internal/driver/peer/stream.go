package peer

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A stream begins with its header, from the dialler: 4 bytes of length (big endian), then the header. The answer is one
// byte of fault.Kind, 0 for accepted, and for a refusal 2 bytes of length and the reason. From then on the connection
// belongs to its two users.
const (
	// HeaderMax is the longest header of a stream in bytes.
	HeaderMax = 16 << 10

	reasonMax   = 4 << 10
	answerYes   = 0
	openTimeout = 10 * time.Second // for header and answer together
)

// Stream is a byte stream that another host opened. It is used by the handler that got it and closed when that returns.
type Stream struct {
	*tls.Conn
	// From is the host on the other side, as its certificate says.
	From inventory.HostID
	// Header says what the stream is for. It is the dialler's, up to HeaderMax bytes.
	Header []byte

	answered atomic.Bool
}

// Accept tells the dialler that the stream is wanted; its DialStream returns then. It is called once, before anything is
// read or written.
func (s *Stream) Accept() error {
	if s.answered.Swap(true) {
		return fault.New(fault.Internal, "stream from host %s was answered before", s.From)
	}
	if err := s.SetDeadline(time.Time{}); err != nil {
		return fault.New(fault.Unavailable, "stream from host %s: %w", s.From, err)
	}
	if _, err := s.Write([]byte{answerYes}); err != nil {
		return fault.New(fault.Unavailable, "stream from host %s: %w", s.From, err)
	}
	return nil
}

// Refuse tells the dialler why the stream is not wanted; its DialStream returns an error of the same kind and text. After
// Accept it does nothing.
func (s *Stream) Refuse(reason error) error {
	if s.answered.Swap(true) {
		return nil
	}
	if _, err := s.Write(refusal(reason)); err != nil {
		return fault.New(fault.Unavailable, "stream from host %s: %w", s.From, err)
	}
	// The dialler may still be writing; without this its kernel could drop the answer with the connection (RFC 9293, 3.6).
	return s.CloseWrite()
}

func refusal(reason error) []byte {
	kind := fault.KindOf(reason)
	if kind == fault.Unknown {
		kind = fault.Internal
	}
	text := reason.Error()
	text = strings.ToValidUTF8(text[:min(len(text), reasonMax)], "?")
	b := binary.BigEndian.AppendUint16([]byte{byte(kind)}, uint16(len(text)))
	return append(b, text...)
}

func writeHeader(w io.Writer, header []byte) error {
	if len(header) > HeaderMax {
		return fault.New(fault.Internal, "stream header of %d bytes is too long: at most %d", len(header), HeaderMax)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(header)))
	_, err := w.Write(append(b, header...))
	return err
}

func readHeader(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > HeaderMax {
		return nil, fault.New(fault.Invalid, "stream header of %d bytes is too long: at most %d", n, HeaderMax)
	}
	header := make([]byte, n)
	_, err := io.ReadFull(r, header)
	return header, err
}

// errNoAnswer is a stream that was cut before the other side said yes or no.
var errNoAnswer = errors.New("it closed the stream without an answer")

func readAnswer(r io.Reader) error {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return errNoAnswer
		}
		return err
	}
	if kind[0] == answerYes {
		return nil
	}
	if fault.Kind(kind[0]) > fault.Internal {
		kind[0] = byte(fault.Internal) // of a newer version
	}
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return errNoAnswer
	}
	text := make([]byte, min(binary.BigEndian.Uint16(size[:]), reasonMax))
	if _, err := io.ReadFull(r, text); err != nil {
		return errNoAnswer
	}
	return fault.New(fault.Kind(kind[0]), "%s", strings.ToValidUTF8(string(text), "?"))
}

// tune makes a dead host known on a connection that is silent (keep-alive) or has something to send (user timeout).
func tune(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	// Both are help, not need: without them the kernel's own, longer, times apply.
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
	})
	setUserTimeout(tcp, unackedMax)
}
