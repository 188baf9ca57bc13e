// Package memory is the Linux guest's memory under test: a region whose every page can be checked at any time, and a dirtier that
// rewrites pages at a given rate while others check.
//
// The content of a page is a function of (seed, page number, version); the versions are kept apart in a vector. Whoever writes a page raises
// its version and rewrites all of it. So a write that a migration loses leaves either an old page under a new version or a new page
// under an old version, and Check sees it, whether the writer runs or not. A sum kept in a third place guards against
// losing both at once. Nothing here knows about migrations; the package runs on any Linux and is tested there.
package memory

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// PageSize is the size in bytes of what is written and checked at once.
const PageSize = 4096

// stripes is the number of locks that the pages share. Holding one never blocks the writer for longer than one page takes.
const stripes = 64

const wordsPerPage = PageSize / 8

// Region is memory whose content is known. Its methods may be called by many goroutines at once, except Close, after which nobody may use it.
type Region struct {
	seed     uint64
	data     []byte // mapped, Pages × PageSize
	versions []uint64
	locks    [stripes]sync.Mutex // lock p % stripes guards page p and its version
	writes   atomic.Uint64       // writes that were begun, in all pages
	done     atomic.Uint64       // writes that were finished
}

// Report is what a check found.
type Report struct {
	Pages       int    // pages checked
	Bad         int    // pages whose content is not that of their version
	FirstBad    int    // the lowest bad page, or -1
	VersionsSum uint64 // sum of all versions seen
	WritesMin   uint64 // writes finished before the check began: VersionsSum is never less, unless versions were lost
	WritesMax   uint64 // writes begun when the check ended: VersionsSum is never more
	SHA256      string // of seed and versions, in hexadecimal; it stands for the content too when Bad is 0
}

// OK says whether nothing was lost: no page is bad, and the versions add up to the writes counted elsewhere.
func (r Report) OK() bool {
	return r.Bad == 0 && r.VersionsSum >= r.WritesMin && r.VersionsSum <= r.WritesMax
}

// NewRegion maps size bytes, rounded down to pages, and writes every page once. It fails if size is less than a page or the system has
// no room; whether the memory is really there is the caller's question, as Linux promises more than it has.
func NewRegion(size int64, seed uint64) (*Region, error) {
	pages := int(size / PageSize)
	if pages < 1 {
		return nil, fmt.Errorf("a region of %d bytes has no page; use %d or more", size, PageSize)
	}
	data, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", pages*PageSize, err)
	}
	r := &Region{seed: seed, data: data, versions: make([]uint64, pages)}
	for page := range pages {
		r.Write(page)
	}
	return r, nil
}

// Close unmaps the region.
func (r *Region) Close() error { return unix.Munmap(r.data) }

// Pages returns the region's size in pages.
func (r *Region) Pages() int { return len(r.versions) }

// Writes returns how many pages were written since the region was made.
func (r *Region) Writes() uint64 { return r.done.Load() }

// Write gives a page its next version and rewrites all of it.
func (r *Region) Write(page int) {
	lock := &r.locks[page%stripes]
	lock.Lock()
	defer lock.Unlock()
	r.writes.Add(1)
	r.versions[page]++
	fill(r.page(page), r.start(page, r.versions[page]))
	r.done.Add(1)
}

// Corrupt flips one bit of one byte of a page and tells no version, as a lost write would. It exists so that a test can prove that
// Check is able to fail.
func (r *Region) Corrupt(page, offset int) error {
	if page < 0 || page >= r.Pages() || offset < 0 || offset >= PageSize {
		return fmt.Errorf("page %d offset %d is not in a region of %d pages", page, offset, r.Pages())
	}
	lock := &r.locks[page%stripes]
	lock.Lock()
	defer lock.Unlock()
	r.page(page)[offset] ^= 1
	return nil
}

// Check compares every page with what its version says. Writers run on meanwhile and wait for one page at most.
func (r *Region) Check() Report {
	report := Report{Pages: r.Pages(), FirstBad: -1, WritesMin: r.done.Load()}
	sum := sha256.New()
	hashWord(sum, r.seed)
	for page := range r.Pages() {
		version, good := r.checkPage(page)
		if !good {
			if report.Bad == 0 {
				report.FirstBad = page
			}
			report.Bad++
		}
		report.VersionsSum += version
		hashWord(sum, version)
	}
	report.WritesMax = r.writes.Load()
	report.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return report
}

func (r *Region) checkPage(page int) (version uint64, good bool) {
	lock := &r.locks[page%stripes]
	lock.Lock()
	defer lock.Unlock()
	version = r.versions[page]
	return version, equal(r.page(page), r.start(page, version))
}

func (r *Region) page(page int) []byte {
	return r.data[page*PageSize : (page+1)*PageSize]
}

// start is the generator's state at the start of a page: SplitMix64's finisher over seed, page and version, so that neighbours have nothing in common.
func (r *Region) start(page int, version uint64) uint64 {
	x := r.seed ^ uint64(page)*0x9e3779b97f4a7c15 ^ version*0xd1342543de82ef95
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// next is Knuth's 64-bit congruential generator: one multiplication per word, as the guest's processor may be emulated and slow.
func next(x uint64) uint64 { return x*6364136223846793005 + 1442695040888963407 }

func fill(page []byte, x uint64) {
	for i := range wordsPerPage {
		x = next(x)
		binary.LittleEndian.PutUint64(page[i*8:], x^x>>32)
	}
}

func equal(page []byte, x uint64) bool {
	for i := range wordsPerPage {
		x = next(x)
		if binary.LittleEndian.Uint64(page[i*8:]) != x^x>>32 {
			return false
		}
	}
	return true
}

func hashWord(h hash.Hash, v uint64) {
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], v)
	_, _ = h.Write(word[:]) // a hash never fails
}
