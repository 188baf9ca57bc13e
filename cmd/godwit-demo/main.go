// Command godwit-demo shows a live migration on one machine: it starts a cluster of three hosts, boots a Linux guest, watches
// it over TCP and UDP from its own network segment, and moves it round the cluster. It exits 0 only when nothing was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The demo's guest.
const (
	vmName    = "web-1"
	vmMemory  = 512 * inventory.MiB
	dirtyRate = 4 << 20
	dirtySet  = 64 << 20
)

func main() {
	keep := flag.Bool("keep", false, "leave the cluster up at the end")
	binary := flag.String("godwit", "bin/godwit", "the godwit binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *binary, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// leg is one migration as it was measured.
type leg struct {
	from, to  string
	migration *godwitv1.Migration
	seen      lab.Seen
	memory    control.Checksum
}

func run(ctx context.Context, binary string, keep bool) (err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	cache, err := guest.Cache()
	if err != nil {
		return err
	}
	say("starting three hosts on 127.0.0.11, .12 and .13")
	cluster, err := lab.Start(ctx, lab.Options{Binary: binary, Hosts: 3, Subnet: "127.0.0", Cache: filepath.Join(cache, "probes")})
	if err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			kept(cluster)
			<-ctx.Done()
		}
		err = errors.Join(err, cluster.Close())
	}()
	first := cluster.Hosts[0]
	if err := show(ctx, first, "host", "ls"); err != nil {
		return err
	}
	say("booting a Linux guest of %v on %s", vmMemory, first.Name)
	ip, err := first.LinuxVM(ctx, vmName, vmMemory, 64*inventory.MiB)
	if err != nil {
		return err
	}
	segment, err := first.JoinSegment(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, segment.Close()) }()
	legs, err := tour(ctx, cluster, segment, ip)
	if err != nil {
		return err
	}
	return summary(legs)
}

// tour moves the guest 1 -> 2 -> 3 -> 1 under watch.
func tour(ctx context.Context, cluster *lab.Cluster, segment *lab.Segment, ip string) ([]leg, error) {
	ctl, err := segment.Control(ctx, ip)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ctl.Close() }() // nothing is left to say
	if _, err := ctl.Dirty(ctx, control.DirtyOptions{Rate: dirtyRate, Set: dirtySet}); err != nil {
		return nil, err
	}
	before, err := ctl.Status(ctx)
	if err != nil {
		return nil, err
	}
	probes, err := segment.Watch(ctx, ip)
	if err != nil {
		return nil, err
	}
	defer probes.Close()
	say("guest %s writes %v/s over %v; a TCP stream and a UDP probe watch it from its segment", ip, inventory.Bytes(dirtyRate), inventory.Bytes(dirtySet))
	hosts := cluster.Hosts
	var legs []leg
	for _, way := range [][2]*lab.Host{{hosts[0], hosts[1]}, {hosts[1], hosts[2]}, {hosts[2], hosts[0]}} {
		say("migrating %s -> %s", way[0].Name, way[1].Name)
		probes.Settle(ctx)
		probes.Mark()
		m, err := migrate(ctx, hosts[0], way[1].Name)
		if err != nil {
			return nil, err
		}
		l := leg{from: way[0].Name, to: way[1].Name, migration: m, seen: probes.Settle(ctx)}
		if l.memory, err = ctl.Checksum(ctx); err != nil {
			return nil, err
		}
		after, err := ctl.Status(ctx)
		if err != nil {
			return nil, err
		}
		if after.Boot != before.Boot || after.UptimeMS < before.UptimeMS {
			return nil, fmt.Errorf("the guest was restarted: boot %s became %s", before.Boot, after.Boot)
		}
		legs = append(legs, l)
	}
	return legs, nil
}

// migrate runs godwit vm migrate with its progress on this terminal, and returns the record.
func migrate(ctx context.Context, h *lab.Host, to string) (*godwitv1.Migration, error) {
	if err := show(ctx, h, "vm", "migrate", vmName, "--to", to); err != nil {
		return nil, err
	}
	all := &godwitv1.ListMigrationsResponse{}
	if err := h.Read(ctx, all, "migration", "ls"); err != nil {
		return nil, err
	}
	if len(all.GetMigrations()) == 0 {
		return nil, errors.New("the migration left no record")
	}
	return all.GetMigrations()[0], nil
}

// show runs a godwit command with its output on this terminal.
func show(ctx context.Context, h *lab.Host, args ...string) error {
	cmd := h.Interactive(ctx, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("godwit %v: %w", args, err)
	}
	return nil
}

// summary prints the table and the line for machines, and fails unless nothing was lost.
func summary(legs []leg) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nWAY\tTOTAL\tQEMU DOWNTIME\tPAUSE\tUDP GAP\tTCP GAP\tLOST\tSENT\tMEMORY") // Flush reports
	var worst time.Duration
	var lost, bad uint64
	var failures []error
	for _, l := range legs {
		r := l.migration.GetStatus().GetResult()
		_, _ = fmt.Fprintf(w, "%s -> %s\t%v\t%v\t%v\t%v\t%v\t%d\t%v\t%v\n", l.from, l.to, ms(r.GetTotal().AsDuration()), // as above
			ms(r.GetDowntime().AsDuration()), ms(r.GetStopToResume().AsDuration()), ms(l.seen.UDPGap), ms(l.seen.TCPGap), l.seen.Lost,
			inventory.Bytes(r.GetSent()), l.memory)
		worst = max(worst, l.seen.Gap())
		lost = l.seen.Lost // counted since the probes began
		if !l.memory.OK {
			bad++
		}
		if l.seen.Err != nil {
			failures = append(failures, fmt.Errorf("%s -> %s: tcp stream: %w", l.from, l.to, l.seen.Err))
		}
		if l.migration.GetStatus().GetPhase() != inventory.Completed.String() {
			failures = append(failures, fmt.Errorf("%s -> %s: %s", l.from, l.to, l.migration.GetStatus().GetPhase()))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	memory := "equal"
	if bad > 0 {
		memory = "DIFFERENT"
		failures = append(failures, errors.New("memory differs"))
	}
	if lost > 0 {
		failures = append(failures, fmt.Errorf("%d packets lost", lost))
	}
	fmt.Printf("\ndemo: %d migrations, longest gap %d ms, %d packets lost, memory %s\n", len(legs), worst.Milliseconds(), lost, memory)
	return errors.Join(failures...)
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func kept(c *lab.Cluster) {
	h := c.Hosts[0]
	fmt.Printf(`
The cluster stays up until Ctrl-C. Try, in another terminal:

  export GODWIT_SOCKET=%s
  bin/godwit vm migrate %s --to %s
  bin/godwit vm console %s
  bin/godwit migration ls
`, h.Socket, vmName, c.Hosts[1].Name, vmName)
}

func say(format string, args ...any) { fmt.Printf("== "+format+"\n", args...) }
