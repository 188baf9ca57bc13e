package migrate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/converge"
)

// followEvery is how often QEMU is asked how far it is. The question costs it some 50 µs; the switch ports must be held
// within the last tens of milliseconds before the guest stops.
const followEvery = 20 * time.Millisecond

// showEvery is how often the progress of a copy is published: often enough for an eye, and no more, as each watcher takes
// processor time from the copy.
const showEvery = 100 * time.Millisecond

// drainMax bounds the wait for QEMU to read what the switch wrote before a hold.
const drainMax = 20 * time.Millisecond

// holdMax bounds the order to the switch itself. It takes well below a millisecond; a machine that is busy with other things
// may need longer, and a port that is not held cannot forward.
const holdMax = 500 * time.Millisecond

// follow polls the copy, publishes its progress, lets QEMU take a longer pause when a short one does not do, and holds the switch ports
// shortly before the guest stops: QEMU loses frames that it reads once its vCPUs stand (net/net.c, qemu_can_send_packet), so from a little
// earlier on none may reach it.
func (s *Source) follow(ctx context.Context) {
	track := Track(s.Migration.Spec)
	allowed := track.Downtime()
	var warming sync.WaitGroup
	defer warming.Wait()
	began := time.Now()
	var shown time.Time
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		within, done := context.WithTimeout(ctx, callTimeout)
		m, err := s.Process.QMP().Migration(within)
		done()
		if err == nil && m.RAM.Total > 0 {
			var advice converge.Advice
			track, advice = track.Step(converge.Sample{
				At: time.Since(began), Total: m.RAM.Total, Remaining: m.RAM.Remaining, Transferred: m.RAM.Transferred,
				DirtyPages: int64(m.RAM.DirtyRate) / max(int64(m.RAM.PageSize), 1), Mbps: float64(m.RAM.SendRate) * 8 / 1e6,
				Passes: m.RAM.Rounds, Predicted: m.ExpectedDowntime, Throttle: m.Throttle,
			})
			if time.Since(shown) >= showEvery {
				shown = time.Now()
				s.set(func(st *inventory.MigrationStatus) { st.Progress = advice.Progress })
			}
			if advice.Downtime > allowed {
				allowed = s.allow(ctx, allowed, advice.Downtime)
			}
			switch advice.Port {
			case converge.Hold:
				warming.Go(func() { s.warm(ctx) })
				s.holdPorts(ctx, false)
			case converge.Unhold:
				s.unholdPorts(ctx)
			case converge.Leave:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.standing() {
			return // nothing is left to follow, and QEMU has other things to do
		}
	}
}

// warm opens the way of the release before it is needed.
func (s *Source) warm(ctx context.Context) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	if err := s.Far.Warm(within); err != nil {
		s.Log.LogAttrs(ctx, slog.LevelDebug, "the way of the release is not open yet", slog.Any("err", err))
	}
}

// standing reports whether the guest has stopped for the switchover.
func (s *Source) standing() bool {
	s.ports.Lock()
	defer s.ports.Unlock()
	return s.vcpusOff
}

// allow lets QEMU take a pause of up to limit, and returns what it may take now: the next sample tries again.
func (s *Source) allow(ctx context.Context, before, limit time.Duration) time.Duration {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	if err := s.Process.QMP().SetMigrationParameters(within, qmp.MigrationParameters{DowntimeMax: limit}); err != nil {
		return before
	}
	return limit
}

// ring is where a card's receive ring stood when its port began to be tracked, and what the switch had written for it when it was held.
type ring struct {
	known   bool
	used    uint16
	held    bool // written is known: the number stands still while the port is held
	written uint64
}

// trackPorts begins to count what reaches the guest on each of its ports. A card that cannot be counted is left out: its
// frames are then only safe when the hold came before the stop.
func (s *Source) trackPorts(ctx context.Context) {
	conn := s.Process.QMP()
	rings := make([]ring, len(s.Ports))
	for i, port := range s.Ports {
		err := func() error {
			filter, err := conn.RxFilter(ctx, qemu.NICDevice(port.NIC))
			if err != nil {
				return err
			}
			within, done := context.WithTimeout(ctx, drainMax)
			defer done()
			err = s.Switch.Track(within, port.ID, vnet.Filter(filter))
			if errors.Is(err, ErrNotCounted) {
				return nil
			}
			if err == nil {
				rings[i].used, err = conn.QueueUsed(ctx, qemu.NICBackend(port.NIC), 0)
			}
			rings[i].known = err == nil
			return errors.Join(err, s.Switch.Unhold(ctx, port.ID))
		}()
		if err != nil {
			s.Log.LogAttrs(ctx, slog.LevelWarn, "port not tracked", slog.String("port", port.ID), slog.Any("err", err))
		}
	}
	s.ports.Lock()
	defer s.ports.Unlock()
	s.rings = rings
}

// askRings asks QEMU how far the guest's receive rings are, for unseen. The guest must be stopped; a QEMU that sends its last pages answers nothing,
// so it is asked before. Nil stands for a card that is not counted.
func (s *Source) askRings(ctx context.Context) []*qmp.Sent {
	s.ports.Lock()
	defer s.ports.Unlock()
	asked := make([]*qmp.Sent, len(s.Ports))
	for i, port := range s.Ports {
		if i < len(s.rings) && s.rings[i].known {
			asked[i] = s.Process.QMP().SendQueueUsed(ctx, qemu.NICBackend(port.NIC), 0)
		}
	}
	return asked
}

// unseen returns how many of the frames that were last written to a card's QEMU never reached the guest: those that QEMU
// read once the vCPUs stood. The ports must be held.
func (s *Source) unseen(ctx context.Context, i int, port Port, asked *qmp.Sent) int {
	if asked == nil {
		return 0
	}
	used, err := qmp.Used(ctx, asked)
	if err != nil {
		return 0
	}
	s.ports.Lock()
	defer s.ports.Unlock()
	s.count(ctx, i)
	if !s.rings[i].held {
		return 0 // the switch was restarted, and what it had in hand is gone
	}
	written := s.rings[i].written
	// Both counters only differ by what is on the way, so 16 bits are enough. A guest that reset its card meanwhile makes
	// nonsense of it.
	missing := int(int16(uint16(written) - (used - s.rings[i].used))) //nolint:gosec // modulo 65536 is meant
	if missing <= 0 || missing > unseenMax {
		return 0
	}
	s.Log.LogAttrs(ctx, slog.LevelInfo, "frames did not reach the stopped guest", slog.String("port", port.ID), slog.Int("frames", missing))
	return missing
}

// count asks the switch what it wrote to a card, once in a hold. The port must be held, and the caller holds ports.
func (s *Source) count(ctx context.Context, i int) {
	if i >= len(s.rings) || !s.rings[i].known || s.rings[i].held {
		return
	}
	written, err := s.Switch.Tracked(ctx, s.Ports[i].ID)
	s.rings[i].written, s.rings[i].held = written, err == nil
}

// unseenMax bounds the frames that can be on the way into one QEMU: its read buffer and its socket hold fewer.
const unseenMax = 1024

// holdPorts keeps frames from the guest. Stopped says that the vCPUs stand: nothing opens the ports then but the end of the
// migration.
func (s *Source) holdPorts(ctx context.Context, stopped bool) {
	s.ports.Lock()
	defer s.ports.Unlock()
	s.vcpusOff = s.vcpusOff || stopped
	if s.held {
		return
	}
	s.held = true
	for i, port := range s.Ports {
		drain := drainMax
		if stopped {
			drain = time.Millisecond // QEMU reads no more; the frames that it left are found by unseen
		}
		within, done := context.WithTimeout(ctx, holdMax)
		err := s.Switch.Hold(within, port.ID, drain)
		done()
		if err != nil {
			s.Log.LogAttrs(ctx, slog.LevelDebug, "port held with frames unread", slog.String("port", port.ID), slog.Any("err", err))
			continue // whether it is held is not known, and so is the number
		}
		s.count(ctx, i) // now, and not in the pause
	}
	if stopped {
		s.Log.LogAttrs(ctx, slog.LevelInfo, "ports were held after the guest stopped")
	}
}

// unholdPorts lets frames through again because the guest did not stop after all.
func (s *Source) unholdPorts(ctx context.Context) {
	s.ports.Lock()
	defer s.ports.Unlock()
	if !s.held || s.vcpusOff {
		return
	}
	s.held = false
	for i, port := range s.Ports {
		if i < len(s.rings) {
			s.rings[i].held = false
		}
		if err := s.Switch.Unhold(ctx, port.ID); err != nil {
			s.Log.LogAttrs(ctx, slog.LevelWarn, "port stays held", slog.String("port", port.ID), slog.Any("err", err))
		}
	}
}

// reopenPorts gives the guest, which runs here again, everything that came for it meanwhile.
func (s *Source) reopenPorts(ctx context.Context) {
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer done()
	s.ports.Lock()
	defer s.ports.Unlock()
	s.held, s.vcpusOff = false, false
	for _, port := range s.Ports {
		if err := s.Switch.Abort(undo, port.ID, s.Migration.ID); err != nil {
			s.Log.LogAttrs(ctx, slog.LevelError, "switch port not reopened", slog.String("port", port.ID), slog.Any("err", err))
		}
	}
}

// commitPorts lets go of the frames kept for the own guest: it runs at the target.
func (s *Source) commitPorts(ctx context.Context) {
	for _, port := range s.Ports {
		if err := s.Switch.Commit(ctx, port.ID, s.Migration.ID); err != nil {
			s.Log.LogAttrs(ctx, slog.LevelWarn, "switch port not committed", slog.String("port", port.ID), slog.Any("err", err))
		}
	}
}
