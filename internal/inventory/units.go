package inventory

import (
	"math"
	"strconv"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Bytes is an amount of memory or disk.
type Bytes int64

// BytesPerSecond is a data rate.
type BytesPerSecond int64

// The binary multiples. Sizes are always powers of 1024, as in vSphere and QEMU.
const (
	KiB Bytes = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

var units = []struct {
	suffix string
	size   Bytes
}{{"T", TiB}, {"G", GiB}, {"M", MiB}, {"K", KiB}}

// String returns the amount with one decimal at most and the largest fitting unit: "512 MiB", "1.5 GiB", "17 B".
func (b Bytes) String() string {
	for _, u := range units {
		if b >= u.size || b <= -u.size {
			s := strconv.FormatFloat(float64(b)/float64(u.size), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + " " + u.suffix + "iB"
		}
	}
	return strconv.FormatInt(int64(b), 10) + " B"
}

// String returns the rate as Bytes does, with "/s".
func (r BytesPerSecond) String() string { return Bytes(r).String() + "/s" }

// ParseBytes reads "512M", "2G", "1.5GiB", "4096" or "20 MB". The unit is binary whatever its spelling; without one the
// number counts bytes. Negative, fractional-byte, empty and overflowing amounts are fault.Invalid.
func ParseBytes(s string) (Bytes, error) {
	text := strings.ToUpper(strings.TrimSpace(s))
	text = strings.TrimSuffix(strings.TrimSuffix(text, "B"), "I")
	factor := Bytes(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			text, factor = rest, u.size
			break
		}
	}
	text = strings.TrimSpace(text)
	bad := func(why string) (Bytes, error) {
		return 0, fault.New(fault.Invalid, "size %q %s: write a number with K, M, G or T, like 512M or 2G", s, why)
	}
	if text == "" || strings.Trim(text, "0123456789.") != "" {
		return bad("is no size")
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return bad("is no number")
	}
	f *= float64(factor)
	if f != math.Trunc(f) {
		return bad("is not a whole number of bytes")
	}
	if f >= math.MaxInt64 {
		return bad("is too large")
	}
	return Bytes(f), nil
}
