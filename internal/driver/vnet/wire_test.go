package vnet

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Every message survives the wire.
func TestMessagesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := rapid.Map(rapid.StringN(0, 40, 255), func(s string) inventory.HostID { return inventory.HostID(s) })
		it := item{kind: rapid.SampledFrom([]kind{
			kindData, kindForward, kindMoved, kindFlush, kindAck, kindEnd, kindKeepalive, kindHello,
		}).Draw(t, "kind")}
		it.net = netKey(rapid.Uint64().Draw(t, "net"))
		c := &control{}
		fill := func(b []byte) { copy(b, rapid.SliceOfN(rapid.Byte(), len(b), len(b)).Draw(t, "bytes")) }
		switch it.kind {
		case kindForward, kindMoved, kindEnd, kindFlush, kindAck:
			fill(c.mac[:])
			fill(c.mig[:])
		case kindData, kindKeepalive, kindHello:
		}
		switch it.kind {
		case kindForward, kindMoved, kindEnd:
			c.number = rapid.Uint64().Draw(t, "number")
		case kindHello:
			c.number = uint64(rapid.Uint16().Draw(t, "version"))
		case kindData, kindFlush, kindAck, kindKeepalive:
		}
		switch it.kind {
		case kindMoved, kindHello:
			c.host = host.Draw(t, "host")
		case kindFlush:
			c.host, c.target = host.Draw(t, "host"), host.Draw(t, "target")
		case kindData, kindForward, kindAck, kindEnd, kindKeepalive:
		}
		if it.kind != kindData && it.kind != kindKeepalive {
			it.ctl = c
		}
		if it.kind == kindData || it.kind == kindForward {
			it.frame = copyFrame(rapid.SliceOfN(rapid.Byte(), headerLen, 3000).Draw(t, "frame"))
		}
		b := appendMessage(nil, it)
		got, err := readMessage(bufio.NewReaderSize(bytes.NewReader(b), readBuffer))
		if err != nil {
			t.Fatal(err)
		}
		if got.kind != it.kind || got.net != it.net || !reflect.DeepEqual(got.ctl, it.ctl) {
			t.Fatalf("sent %+v %+v, got %+v %+v", it, it.ctl, got, got.ctl)
		}
		if it.frame != nil && !bytes.Equal(got.frame.data, it.frame.data) {
			t.Fatal("the frame has changed")
		}
	})
}

// FuzzTrunk: whatever a peer sends, reading ends with an error or end of input, and what is read is sane and can be
// given to a fabric.
func FuzzTrunk(f *testing.F) {
	fr := copyFrame(make([]byte, 60))
	for _, it := range []item{
		{kind: kindHello, ctl: &control{number: trunkVersion, host: "host-2"}},
		{kind: kindKeepalive},
		{kind: kindData, net: keyOfNetwork(blue), frame: fr},
		{kind: kindForward, net: keyOfNetwork(blue), frame: fr, ctl: &control{mac: guestMAC, mig: keyOfMigration("m"), number: 7}},
		{kind: kindMoved, net: keyOfNetwork(blue), ctl: &control{mac: guestMAC, mig: keyOfMigration("m"), host: "host-1", number: 1}},
		{kind: kindFlush, net: keyOfNetwork(blue), ctl: &control{mac: guestMAC, mig: keyOfMigration("m"), host: "host-2", target: "host-1"}},
		{kind: kindAck, net: keyOfNetwork(blue), ctl: &control{mac: guestMAC, mig: keyOfMigration("m")}},
		{kind: kindEnd, net: keyOfNetwork(blue), ctl: &control{mac: guestMAC, mig: keyOfMigration("m"), number: 1}},
	} {
		b := appendMessage(nil, it)
		f.Add(b)
		f.Add(append(b, b[:len(b)/2]...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		fab := fuzzFabric(t)
		l := fab.links["host-2"]
		r := bufio.NewReaderSize(bytes.NewReader(b), readBuffer)
		for {
			it, err := readMessage(r)
			if err != nil {
				return
			}
			if it.frame != nil && (len(it.frame.data) < headerLen || len(it.frame.data) > frameMax) {
				t.Fatalf("a frame of %d bytes", len(it.frame.data))
			}
			fab.fromLink(l, []item{it}, fab.swept)
		}
	})
}

// fuzzFabric has a port in each state that messages of peers can reach.
func fuzzFabric(t *testing.T) *fabric {
	w := newBareFabric("host-1")
	seg := newSegment(blue)
	w.networks[seg.key] = seg
	w.links["host-2"] = &link{host: "host-2", up: true, out: newQueue(trunkQueueMax)}
	for i, mode := range []PortMode{ModeReserved, ModeNormal} {
		m := guestMAC
		m[5] += byte(i)
		p, err := newPort(PortSpec{ID: string(mode), Network: blue, MAC: m.String()}, mode)
		must(t, err)
		p.arrive = passage{id: "m", key: keyOfMigration("m"), peer: "host-2"}
		must(t, w.addPort(p, w.swept))
	}
	return w
}

// FuzzPort: whatever a guest's QEMU sends, reading ends with an error or end of input.
func FuzzPort(f *testing.F) {
	f.Add(binary.BigEndian.AppendUint32(nil, 60))
	f.Add(append(binary.BigEndian.AppendUint32(nil, 20), make([]byte, 24)...))
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		var runts uint64
		r := bufio.NewReaderSize(bytes.NewReader(b), readBuffer)
		for {
			fr, err := readFrame(r, &runts)
			if err != nil {
				return
			}
			if len(fr.data) < headerLen || len(fr.data) > frameMax {
				t.Fatalf("a frame of %d bytes", len(fr.data))
			}
			_ = blockBuffered(r)
			fr.release()
		}
	})
}

// A block that claims to be longer than any frame ends the connection at once instead of being waited for.
func TestOversizedBlockIsRefused(t *testing.T) {
	for _, size := range []uint32{frameMax + 1, 1 << 31, 1<<32 - 1} {
		b := append(binary.BigEndian.AppendUint32(nil, size), make([]byte, 100)...)
		var runts uint64
		_, err := readFrame(bufio.NewReaderSize(bytes.NewReader(b), readBuffer), &runts)
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	b := append(binary.BigEndian.AppendUint32(nil, frameMax), make([]byte, frameMax)...)
	var runts uint64
	if _, err := readFrame(bufio.NewReaderSize(bytes.NewReader(b), readBuffer), &runts); err != nil {
		t.Errorf("the longest frame: %v", err)
	}
}

// The queue keeps order, bounds what is pushed and makes room for a backlog.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(8)
		var want []int
		number := 0
		push := func() item {
			number++
			return item{kind: kindData, net: netKey(number), frame: newFrame(rapid.IntRange(14, 2000).Draw(t, "size"))}
		}
		boosted := false
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "do") {
			case 0, 1:
				full := len(want) >= 8 && !boosted
				if q.push(push()) {
					want = append(want, number)
					if full {
						t.Fatal("a full queue took a frame")
					}
				} else if !full {
					t.Fatal("a frame was refused though there was room")
				}
			case 2:
				got := q.take(nil, rapid.IntRange(0, 4000).Draw(t, "bytes"))
				if len(want) > 0 && len(got) == 0 {
					t.Fatal("nothing taken")
				}
				for i := range got {
					if int(got[i].net) != want[i] {
						t.Fatalf("took %d, want %d", got[i].net, want[i])
					}
				}
				want = want[len(got):]
				if q.idle() != (len(got) == 0) {
					t.Fatal("idle while something is being written")
				}
				q.done()
				releaseAll(got)
				boosted = boosted && len(want) > 0
			case 3:
				items := make([]item, rapid.IntRange(0, 40).Draw(t, "backlog"))
				for i := range items {
					items[i] = push()
					want = append(want, number)
				}
				q.boost(items)
				boosted = true
			}
		}
	})
}
