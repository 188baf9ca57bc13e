package vnet

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// The benchmarks send in windows, as TCP would: a sender that never waits measures how fast a switch can drop.
const benchWindow = 512

// benchmarkPath measures frames from one station's socket to another's. A lost frame fails it.
func benchmarkPath(b *testing.B, from, to *node, size int) {
	source, target := from.plainPort(b, "from", macA), to.plainPort(b, "to", macB)
	toMAC, _ := parseMAC(macB)
	fromMAC, _ := parseMAC(macA)
	hello := numbered(fromMAC, toMAC, 0) // teaches the table, over the trunk too
	if _, err := target.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(hello.data))), hello.data...)); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(source, make([]byte, 4+60)); err != nil {
		b.Fatal(err)
	}
	one := make([]byte, 4+size)
	binary.BigEndian.PutUint32(one, uint32(size))
	copy(one[4:], toMAC[:])
	copy(one[10:], fromMAC[:])
	one[16], one[17] = 0x88, 0xb5
	var window []byte
	for range benchWindow / 4 {
		window = append(window, one...)
	}
	room := make(chan struct{}, 3) // quarter windows on their way
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error, 1)
	rounds := (b.N + benchWindow/4 - 1) / (benchWindow / 4)
	go func() {
		r := bufio.NewReaderSize(target, readBuffer)
		for range rounds {
			if _, err := io.CopyN(io.Discard, r, int64(len(window))); err != nil {
				done <- err
				return
			}
			<-room
		}
		done <- nil
	}()
	for range rounds {
		room <- struct{}{}
		if _, err := source.Write(window); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(rounds*benchWindow/4)/b.Elapsed().Seconds(), "frames/s")
}

func (n *node) plainPort(b *testing.B, id, m string) net.Conn {
	must(b, n.AddPort(b.Context(), n.spec(id, m)))
	b.Cleanup(func() { must(b, n.RemovePort(context.WithoutCancel(b.Context()), id)) })
	return n.deaf(id)
}

func BenchmarkLocal(b *testing.B) {
	n := startNode(b, nil, "host-1", "")
	must(b, n.SetNetworks(b.Context(), []NetworkSpec{{ID: blue}}))
	b.Run("1514", func(b *testing.B) { benchmarkPath(b, n, n, 1514) })
	b.Run("64", func(b *testing.B) { benchmarkPath(b, n, n, 64) })
}

func BenchmarkTrunk(b *testing.B) {
	nodes := mesh(b, 2)
	b.Run("1514", func(b *testing.B) { benchmarkPath(b, nodes[0], nodes[1], 1514) })
	b.Run("64", func(b *testing.B) { benchmarkPath(b, nodes[0], nodes[1], 64) })
}
