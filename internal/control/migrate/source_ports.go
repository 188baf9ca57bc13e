package migrate

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/fault"
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

// The waits for what QEMU has read to reach the guest, while the ports are held. QEMU keeps any number of frames for a guest that takes them slower than
// they come; as long as it takes some, it is waited for.
const (
	settleQuiet = 500 * time.Millisecond // without a frame taken: there is none, or the guest does not run
	settleMax   = 2 * time.Second
	settlePoll  = 2 * time.Millisecond
)

// limitLag is how long QEMU may go by the downtime limit before the one that it was given last: it computes with it every 100 ms, between two portions
// that take up to 50 ms each on a machine that is not busy.
const limitLag = 500 * time.Millisecond

// trackTries and emptyTries bound how often it is waited for frames to reach a guest that takes them slowly: when the count begins, and
// before the stop. After them it goes on without.
const (
	trackTries = 3
	emptyTries = 3
)

// follow polls the copy, publishes its progress, lets QEMU take a longer pause when a short one does not do, and holds the switch ports
// shortly before the guest stops: QEMU loses frames that it has in hand when its vCPUs stop (net/net.c, net_vm_change_state_handler), so by then
// all must have reached the guest. QEMU is therefore given a downtime limit that lets it stop the guest only when that is so.
func (s *Source) follow(ctx context.Context) {
	track := Track(s.Migration.Spec)
	allowed := track.Downtime()
	stops := !s.counted() // QEMU has that limit, and not none
	var warming sync.WaitGroup
	defer warming.Wait()
	began := time.Now()
	var shown, unhold time.Time
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
			longer := advice.Downtime > allowed
			allowed = advice.Downtime
			switch advice.Port {
			case converge.Hold:
				unhold = time.Time{}
				warming.Go(func() { s.warm(ctx) })
				s.holdPorts(ctx, false)
				stops, longer = s.emptied(ctx) || stops, true
			case converge.Unhold:
				if s.counted() {
					stops = false
					s.limitPause(ctx, qmp.DowntimeNone)
				}
				unhold = time.Now().Add(limitLag)
			case converge.Leave:
			}
			if stops && longer {
				s.limitPause(ctx, allowed)
			}
		}
		if !unhold.IsZero() && !time.Now().Before(unhold) {
			unhold = time.Time{}
			s.unholdPorts(ctx)
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

// ring is where a card's receive ring stood when its port began to be tracked, and what the switch had written for it when it was held.
type ring struct {
	known   bool
	used    uint16
	held    bool // written is known: the number stands still while the port is held
	written uint64
	missing int // of what was written never reached the guest, which stands; missingUnknown when it had stopped before the port was held
}

const missingUnknown = -1

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
			for range trackTries {
				rings[i], err = s.track(ctx, port, vnet.Filter(filter))
				if err == nil || ctx.Err() != nil || errors.Is(err, ErrNotCounted) {
					break
				}
			}
			if errors.Is(err, ErrNotCounted) {
				return nil
			}
			return err
		}()
		if err != nil {
			s.Log.LogAttrs(ctx, slog.LevelWarn, "port not tracked", slog.String("port", port.ID), slog.Any("err", err))
		}
	}
	s.ports.Lock()
	s.rings = rings
	s.ports.Unlock()
	if s.counted() {
		s.limitPause(ctx, qmp.DowntimeNone)
	}
}

// counted reports whether frames of any card are counted. A guest of which none are may stop at any time.
func (s *Source) counted() bool {
	s.ports.Lock()
	defer s.ports.Unlock()
	return slices.ContainsFunc(s.rings, func(r ring) bool { return r.known })
}

// track begins to count on one port. What was written before must all have reached the guest by then, or it would be counted as if it were later.
func (s *Source) track(ctx context.Context, port Port, filter vnet.Filter) (ring, error) {
	within, done := context.WithTimeout(ctx, settleMax)
	defer done()
	err := s.Switch.Track(within, port.ID, filter)
	if errors.Is(err, ErrNotCounted) {
		return ring{}, err
	}
	var r ring
	if err == nil {
		r.used, err = s.settled(within, port)
		var status qmp.Status
		if err == nil {
			status, err = s.Process.QMP().Status(within)
		}
		if err == nil && !status.Running {
			err = errStands
		}
		r.known = err == nil
	}
	return r, errors.Join(err, s.Switch.Unhold(ctx, port.ID))
}

// settled returns how many frames have reached the guest on a held port whose QEMU has read all, once it keeps none back. A ring of which QEMU
// knows no room counts as settled when nothing happened on it for settleQuiet.
func (s *Source) settled(ctx context.Context, port Port) (uint16, error) {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	var last uint16
	var since time.Time
	for {
		q, err := s.Process.QMP().Queue(ctx, qemu.NICBackend(port.NIC), 0)
		if err != nil || q.Room {
			return q.Used, err
		}
		if now := time.Now(); since.IsZero() || q.Used != last {
			last, since = q.Used, now
		} else if now.Sub(since) > settleQuiet {
			return q.Used, nil
		}
		select {
		case <-ctx.Done():
			return 0, fault.New(fault.Unavailable, "port %s: its guest takes frames too slowly", port.ID)
		case <-tick.C:
		}
	}
}

var errStands = errors.New("the guest stands")

// emptied reports whether QEMU may stop the guest, since all that was written before the hold has reached it. A guest that takes its frames too slowly
// goes on for now, but no more than emptyTries times.
func (s *Source) emptied(ctx context.Context) bool {
	for i, port := range s.Ports {
		err := s.empty(ctx, i, port)
		if err == nil {
			continue
		}
		s.Log.LogAttrs(ctx, slog.LevelInfo, "frames are on their way to the guest", slog.String("port", port.ID), slog.Any("err", err))
		if s.full++; s.full <= emptyTries && !errors.Is(err, errStands) {
			s.unholdPorts(ctx)
			return false
		}
	}
	return true
}

// empty waits until all that was written to a held port has reached the guest, and corrects the count by it.
func (s *Source) empty(ctx context.Context, i int, port Port) error {
	s.ports.Lock()
	defer s.ports.Unlock()
	if i >= len(s.rings) || !s.rings[i].known {
		return nil
	}
	within, done := context.WithTimeout(ctx, settleMax)
	defer done()
	if err := s.Switch.Hold(within, port.ID, settleMax/2); err != nil { // held already: this is the wait for QEMU to read
		return err
	}
	used, err := s.settled(within, port)
	if err != nil {
		return err
	}
	// A QEMU whose vCPUs stand keeps every frame back, whatever room there is.
	if status, err := s.Process.QMP().Status(within); err != nil || !status.Running {
		return errors.Join(err, errStands)
	}
	written, err := s.Switch.Tracked(within, port.ID)
	if err == nil {
		s.rings[i].used = used - uint16(written) //nolint:gosec // modulo 65536 is meant
		s.rings[i].written, s.rings[i].held = written, true
	}
	return err
}

// limitPause tells QEMU at which predicted pause it may stop the guest.
func (s *Source) limitPause(ctx context.Context, limit time.Duration) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	if err := s.Process.QMP().SetMigrationParameters(within, qmp.MigrationParameters{DowntimeMax: limit}); err != nil && ctx.Err() == nil {
		s.Log.LogAttrs(ctx, slog.LevelWarn, "downtime limit not set", slog.Any("err", err)) // with the next round or hold again
	}
}

// askRings asks QEMU how far the guest's receive rings are, for unseen. The guest must be stopped; a QEMU that sends its last pages answers nothing,
// so it is asked before. Nil stands for a card that is not counted.
func (s *Source) askRings(ctx context.Context) []*qmp.Sent {
	s.ports.Lock()
	defer s.ports.Unlock()
	asked := make([]*qmp.Sent, len(s.Ports))
	for i, port := range s.Ports {
		if i < len(s.rings) && s.rings[i].known {
			asked[i] = s.Process.QMP().SendQueue(ctx, qemu.NICBackend(port.NIC), 0)
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
	q, err := qmp.Queued(ctx, asked)
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
	missing := int(int16(uint16(written) - (q.Used - s.rings[i].used))) //nolint:gosec // modulo 65536 is meant
	s.rings[i].missing = max(missing, missingUnknown)
	if missing == 0 {
		return 0
	}
	s.Log.LogAttrs(ctx, slog.LevelInfo, "frames did not reach the stopped guest", slog.String("port", port.ID), slog.Int("frames", missing))
	if missing < 0 || missing > unseenMax {
		return 0
	}
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

// unseenMax bounds the frames that can be on the way into one QEMU, as the switch does that remembers them (vnet, recentMax).
const unseenMax = 16384

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
			if i < len(s.rings) && s.rings[i].known {
				s.rings[i].missing = missingUnknown
			}
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

// reopenPorts gives the guest, which runs here again, everything that came for it meanwhile. What its QEMU had thrown away at the stop is lost: some of it
// may be what QEMU read after that and delivers by itself, so that nobody can give it back in its order and once (decision 0028).
func (s *Source) reopenPorts(ctx context.Context) {
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer done()
	s.ports.Lock()
	defer s.ports.Unlock()
	s.held, s.vcpusOff = false, false
	for i, port := range s.Ports {
		if i < len(s.rings) && s.rings[i].missing != 0 {
			frames := slog.Int("frames", s.rings[i].missing)
			if s.rings[i].missing == missingUnknown {
				frames = slog.String("frames", "unknown")
			}
			s.Log.LogAttrs(ctx, slog.LevelWarn, "frames for the guest may be lost: it had stopped before its port was held", slog.String("port", port.ID), frames)
			s.rings[i].missing = 0
		}
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
