package peer

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

func FuzzStreamHeader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		header, err := readHeader(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(header) > HeaderMax {
			t.Fatalf("%d bytes", len(header))
		}
		var again bytes.Buffer
		if err := writeHeader(&again, header); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Errorf("%q reads as %q", b, header)
		}
	})
}

func FuzzStreamAnswer(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{5, 0, 2, 'n', 'o'})
	f.Add([]byte{200, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		err := readAnswer(bytes.NewReader(b))
		if accepted := len(b) > 0 && b[0] == 0; accepted != (err == nil) {
			t.Errorf("%q is %v", b, err)
		}
		if err != nil && !errors.Is(err, errNoAnswer) && fault.KindOf(err) == fault.Unknown {
			t.Errorf("%q has no kind: %v", b, err)
		}
	})
}

func TestRefusalKeepsKindAndText(t *testing.T) {
	for kind := fault.NotFound; kind <= fault.Internal; kind++ {
		err := readAnswer(bytes.NewReader(refusal(fault.New(kind, "no such migration"))))
		if !fault.Is(err, kind) || err.Error() != "no such migration" {
			t.Errorf("%v became %v (%v)", kind, err, fault.KindOf(err))
		}
	}
	err := readAnswer(bytes.NewReader(refusal(errors.New(strings.Repeat("ä", reasonMax)))))
	if !fault.Is(err, fault.Internal) || len(err.Error()) > reasonMax+1 {
		t.Errorf("got %d bytes, %v", len(err.Error()), fault.KindOf(err))
	}
}
