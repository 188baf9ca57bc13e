package sim

import "testing"

func BenchmarkRun(b *testing.B) {
	n := uint64(0)
	for b.Loop() {
		n++
		if r := Run(n, Options{}); r.Broken != nil {
			b.Fatal(r.Broken)
		}
	}
}
