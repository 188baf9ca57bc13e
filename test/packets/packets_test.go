package packets

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

const (
	vmName   = "counter"
	vmMemory = 192 * inventory.MiB
	stepMax  = time.Minute
	quietMax = 15 * time.Second // until the last packets have come
	// What senders are told beyond the rate that they must have by this machine's clock: the guest sends nothing while it stands, and its clock
	// stands then, too.
	surplus      = 1.05
	guestSurplus = 1.25
)

// course is a run: a cluster with a guest, and the station.
type course struct {
	t       *testing.T
	cluster *lab.Cluster
	vm      string
	guest   *control.Client
	station *station
	rate    int
	result  result
}

// step returns a context for one step.
func step(t *testing.T) context.Context {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), stepMax)
	t.Cleanup(done)
	return ctx
}

// TestNoPacketIsLost is the story: a guest that counts packets goes from host to host, whatever becomes of its migrations.
func TestNoPacketIsLost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run make test as root")
	}
	migrations, aborts, rate := *migrationsFlag, *abortsFlag, *rateFlag
	target := "packets"
	if *bridgeFlag {
		target = "packets-bridge"
	}
	command := fmt.Sprintf("make %s MIGRATIONS=%d ABORTS=%d RATE=%d", target, migrations, aborts, rate)
	runs := 1
	if migrations == 0 {
		migrations, aborts, runs = 3, 2, ciRuns
		if rate == 0 {
			rate = ciRate
		}
	}
	if rate == 0 {
		rate = keptRate
	}
	for run := 1; run <= runs; run++ {
		r := result{Driver: "user-space", Rate: rate, Commit: commit, Command: command, Load: load()}
		t.Run(fmt.Sprintf("run %d", run), func(t *testing.T) {
			c := &course{t: t, rate: rate, result: r}
			if *bridgeFlag {
				c.result.Driver = "bridge"
			}
			if kernels, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
				c.result.Nice = 20 - kernels // as the system call has it (getpriority(2))
			}
			c.begin()
			c.fly(migrations, aborts)
			c.land()
			r = c.result
			r.Load += ", then " + load()
			r.judge(migrations, aborts)
			t.Logf("%s: %d migrations, %d aborted, %.0f s; to the guest %d packets, %.0f/s: %d lost, %d twice, %d late; from it %d, %.0f/s: %d lost, %d twice, %d late; stalls %+v, drops %v",
				r.Verdict, len(r.Migrations), len(r.Aborts), r.Seconds, r.ToGuest.Sent, r.ToGuest.PerSec, r.ToGuest.Lost, r.ToGuest.Doubled, r.ToGuest.Late,
				r.FromGuest.Sent, r.FromGuest.PerSec, r.FromGuest.Lost, r.FromGuest.Doubled, r.FromGuest.Late, r.Stalls, r.Drops)
			if r.Verdict == "invalid" && run < runs {
				t.Log(strings.Join(r.Wrong, "\n"))
				return
			}
			if r.Verdict != "none lost" && r.Verdict != "measured" {
				t.Error(strings.Join(r.Wrong, "\n"))
			}
			if err := keep(*keepFlag, r); err != nil {
				t.Error(err)
			}
		})
		if t.Failed() || r.Verdict != "invalid" {
			break
		}
	}
}

// ciRuns bounds the runs of the short form: one on a machine that was too busy says nothing, and is done again.
const ciRuns = 2

// ciRate is that of the short form: it runs beside other tests, on processors that emulate other guests.
const ciRate = 2_000

// begin starts the cluster, the guest and the station.
func (c *course) begin() {
	t := c.t
	cache, err := guest.Cache()
	if err != nil {
		t.Fatal(err)
	}
	options := lab.Options{Binary: godwit, Hosts: 2, Cache: filepath.Join(cache, "probes")}
	if *bridgeFlag {
		options.Cables, options.Run = true, []string{"--network", "lan=bridge:br0"}
	}
	ctx, done := context.WithTimeout(t.Context(), 2*stepMax)
	defer done()
	if c.cluster, err = lab.Start(ctx, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	first := c.cluster.Hosts[0]
	if *bridgeFlag {
		server, err := c.cluster.LAN().ServeDHCP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() }) // nothing was written to it
		if _, err := first.Godwit(step(t), "network", "create", lab.Network, "--driver", "bridge"); err != nil {
			t.Fatal(err)
		}
	}
	ip, err := first.LinuxVM(step(t), vmName, vmMemory, 0)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := first.VM(step(t), vmName)
	if err != nil {
		t.Fatal(err)
	}
	c.vm = vm.GetId()
	address, err := netip.ParseAddr(ip)
	if err != nil {
		t.Fatal(err)
	}
	c.connect(first, vm.GetSpec().GetNics()[0].GetMac(), address)
	t.Cleanup(func() { _ = c.guest.Close() }) // nothing is left to say
}

// connect starts the guest's side and the station, which do not send yet.
func (c *course) connect(first *lab.Host, mac string, guest netip.Addr) {
	t := c.t
	ctx := step(t)
	var w wire
	var from string
	var err error
	if *bridgeFlag {
		lan := c.cluster.LAN()
		if c.guest, err = lab.Control(ctx, lan, guest.String()); err != nil {
			t.Fatal(err)
		}
		s, err := dialGuest(ctx, lan, guest.String())
		if err != nil {
			t.Fatal(err)
		}
		w, from = s, s.LocalAddr().String()
	} else {
		segment, err := first.JoinSegment(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := segment.Close(); err != nil {
				t.Error(err)
			}
		})
		if c.guest, err = segment.Control(ctx, guest.String()); err != nil {
			t.Fatal(err)
		}
		cable, err := plugIn(ctx, first, mac, guest)
		if err != nil {
			t.Fatal(err)
		}
		w, from = cable, netip.AddrPortFrom(cable.ip, stationPort).String()
	}
	run := rand.Uint32() //nolint:gosec // no secret
	c.station = newStation(ctx, w, run)
	t.Cleanup(c.station.close)
	if _, err := c.guest.StartPackets(ctx, run, int(float64(c.rate)*guestSurplus), from); err != nil {
		t.Fatal(err)
	}
	c.station.setRate(int(float64(c.rate) * surplus))
}

// close ends the cluster; a data race or a panic in any of its processes, and whatever it leaves behind, fails the test.
func (c *course) close() {
	for _, h := range c.cluster.Hosts {
		if err := h.Down(); err != nil {
			c.t.Error(err)
		}
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			c.t.Error(err)
		}
		if bad := lab.Alarm(text); bad != "" {
			c.t.Errorf("%s: %.6000s", h.Name, bad)
		}
		if c.t.Failed() {
			c.t.Logf("log of %s:\n%s", h.Name, text[max(0, len(text)-logTail):])
		}
	}
	if err := c.cluster.Close(); err != nil {
		c.t.Error(err)
	}
	if left := c.cluster.Processes(); len(left) > 0 {
		c.t.Errorf("processes %v outlive their cluster", left)
	}
}

// logTail is how much of each host's log a failed test shows.
const logTail = 24 << 10
