//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/guest/memory"
)

// reserve is the free memory in bytes that a region must leave to the rest of the guest.
const reserve = 24 << 20

// errNoRegion is the answer to whoever asks about memory before there is any.
var errNoRegion = errors.New("there is no region yet; send dirty set=64M rate=0 first")

// exercise is the guest's memory under test: at most one region and at most one writer. Its methods may be called by many goroutines.
type exercise struct {
	seed uint64

	mu      sync.RWMutex // held for reading while the region is used, for writing while it is replaced
	region  *memory.Region
	dirtier memory.Dirtier
	stop    func() // ends the writer and waits for it; nil when none runs
}

// start replaces the region and its writer, which then runs until it is told otherwise or ctx, the guest's own, ends.
func (e *exercise) start(ctx context.Context, set, rate int64, pattern memory.Pattern) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.halt()
	if e.region != nil {
		if err := e.region.Close(); err != nil {
			return err
		}
		e.region = nil
	}
	free, err := available()
	if err != nil {
		return err
	}
	if set > free-reserve {
		return fmt.Errorf("a set of %s does not fit: %s of memory are free and %s must stay so",
			control.FormatSize(set), control.FormatSize(free), control.FormatSize(reserve))
	}
	region, err := memory.NewRegion(set, e.seed)
	if err != nil {
		return err
	}
	e.region = region
	e.dirtier = memory.Dirtier{Region: region, Rate: rate, Pattern: pattern}
	if rate == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.dirtier.Run(ctx) // it ends when told so, and only then
	}()
	e.stop = func() {
		cancel()
		<-done
	}
	return nil
}

// halt ends the writer; e.mu is held for writing.
func (e *exercise) halt() {
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

// pause ends the writer and keeps the region.
func (e *exercise) pause() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.halt()
}

// check verifies the region while its writer runs on.
func (e *exercise) check() (control.Checksum, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.region == nil {
		return control.Checksum{}, errNoRegion
	}
	r := e.region.Check()
	return control.Checksum{
		OK: r.OK(), Pages: r.Pages, Bad: r.Bad, FirstBad: r.FirstBad,
		VersionsSum: r.VersionsSum, WritesMin: r.WritesMin, WritesMax: r.WritesMax, SHA256: r.SHA256,
	}, nil
}

// corrupt flips a bit in the middle of a page.
func (e *exercise) corrupt(page int) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.region == nil {
		return errNoRegion
	}
	return e.region.Corrupt(page, memory.PageSize/2)
}

// status describes the region, or is nil without one.
func (e *exercise) status() *control.Dirty {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.region == nil {
		return nil
	}
	return &control.Dirty{
		Running: e.stop != nil, Rate: e.dirtier.Rate, Set: int64(e.region.Pages()) * memory.PageSize,
		Pattern: string(e.dirtier.Pattern), Writes: e.region.Writes(),
	}
}

// available is the memory in bytes that the kernel can give without swapping.
func available() (int64, error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }() // only read
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kib int64
		if strings.HasPrefix(lines.Text(), "MemAvailable:") {
			if _, err := fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &kib); err != nil {
				return 0, err
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
