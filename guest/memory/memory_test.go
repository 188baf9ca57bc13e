package memory_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/guest/memory"
)

func region(t interface {
	Fatal(...any)
	Cleanup(func())
}, pages int, seed uint64,
) *memory.Region {
	r, err := memory.NewRegion(int64(pages)*memory.PageSize, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestAFreshRegionIsRight(t *testing.T) {
	r := region(t, 100, 1)
	got := r.Check()
	if !got.OK() || got.Pages != 100 || got.VersionsSum != 100 || got.FirstBad != -1 {
		t.Fatalf("%+v", got)
	}
}

func TestOneFlippedBitIsFoundAndARewriteHealsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.IntRange(1, 200).Draw(t, "pages")
		r := region(t, pages, rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(0, 50).Draw(t, "writes") {
			r.Write(rapid.IntRange(0, pages-1).Draw(t, "written"))
		}
		page := rapid.IntRange(0, pages-1).Draw(t, "page")
		if err := r.Corrupt(page, rapid.IntRange(0, memory.PageSize-1).Draw(t, "offset")); err != nil {
			t.Fatal(err)
		}
		if got := r.Check(); got.OK() || got.Bad != 1 || got.FirstBad != page {
			t.Fatalf("bit flipped in page %d, check says %+v", page, got)
		}
		r.Write(page)
		if got := r.Check(); !got.OK() {
			t.Fatalf("page %d rewritten, check says %+v", page, got)
		}
	})
}

func TestEqualHistoriesHaveEqualSumsAndOthersDoNot(t *testing.T) {
	a, b, other := region(t, 64, 7), region(t, 64, 7), region(t, 64, 8)
	for _, page := range []int{3, 3, 60} {
		a.Write(page)
		b.Write(page)
		other.Write(page)
	}
	if a.Check().SHA256 != b.Check().SHA256 {
		t.Error("equal regions have different sums")
	}
	if a.Check().SHA256 == other.Check().SHA256 {
		t.Error("another seed has the same sum")
	}
	b.Write(0)
	if a.Check().SHA256 == b.Check().SHA256 {
		t.Error("another history has the same sum")
	}
}

func TestLostVersionsAreFoundEvenWithTheirPages(t *testing.T) {
	// A machine that lost a page of data and the page of the vector with it: content and version agree, the sum does not.
	r := memory.Report{Pages: 10, VersionsSum: 20, WritesMin: 21, WritesMax: 21}
	if r.OK() {
		t.Error("a lost version passed")
	}
}

func TestChecksAreRightWhileWritersRun(t *testing.T) {
	for _, pattern := range []memory.Pattern{memory.Sequential, memory.Random} {
		t.Run(string(pattern), func(t *testing.T) {
			r := region(t, 500, 3)
			ctx, cancel := context.WithCancel(t.Context())
			var writers sync.WaitGroup
			for range 2 {
				writers.Go(func() {
					if err := (memory.Dirtier{Region: r, Rate: 50 << 20, Pattern: pattern}).Run(ctx); !errors.Is(err, context.Canceled) {
						t.Errorf("writer ended with %v", err)
					}
				})
			}
			last := r.Check()
			for checks := 0; checks < 20 || last.VersionsSum < 1000; checks++ {
				got := r.Check()
				if !got.OK() || got.VersionsSum < last.VersionsSum {
					t.Errorf("check %d: %+v after %+v", checks, got, last)
					break
				}
				last = got
			}
			cancel()
			writers.Wait()
			got := r.Check()
			if !got.OK() || got.VersionsSum != r.Writes() || got.WritesMin != got.WritesMax {
				t.Errorf("after the writers: %+v, %d writes", got, r.Writes())
			}
		})
	}
}

func TestDirtierKeepsItsRate(t *testing.T) {
	const rate = 4 << 20 // 1024 pages per second
	r := region(t, 100, 3)
	before := r.Writes()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	_ = memory.Dirtier{Region: r, Rate: rate, Pattern: memory.Random}.Run(ctx)
	got := float64(r.Writes()-before) * memory.PageSize / time.Since(start).Seconds()
	if got < rate/2 || got > rate*1.1 { // a busy machine may be slow, never fast
		t.Errorf("wrote %.0f bytes per second, want %d", got, rate)
	}
}

func TestDirtierWithoutRateWritesNothing(t *testing.T) {
	r := region(t, 10, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := (memory.Dirtier{Region: r}).Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if r.Writes() != 10 {
		t.Errorf("%d writes", r.Writes())
	}
}

func TestWhatIsNoRegionIsRefused(t *testing.T) {
	if _, err := memory.NewRegion(memory.PageSize-1, 0); err == nil {
		t.Error("a region without a page was made")
	}
	r := region(t, 2, 0)
	for _, at := range [][2]int{{-1, 0}, {2, 0}, {0, -1}, {0, memory.PageSize}} {
		if err := r.Corrupt(at[0], at[1]); err == nil {
			t.Errorf("page %d offset %d was corrupted", at[0], at[1])
		}
	}
	if _, err := memory.ParsePattern("zigzag"); err == nil {
		t.Error("an unknown pattern was accepted")
	}
}
