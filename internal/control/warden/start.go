package warden

import (
	"context"
	"log/slog"

	"github.com/godwit-vm/godwit/internal/driver/host"
)

// newGuard starts the guard, from where the former warden of this boot has left off. stop ends it, which may take until the authority's end.
func newGuard(ctx context.Context, c Config) (_ *guard, stop func(), err error) {
	g := &guard{
		watchdog: c.Watchdog, timeout: c.Authority.Watchdog, log: newDiary(c.Log), complaints: map[string]string{},
		words: make(chan word, wordsMax), over: make(chan struct{}),
	}
	boot, err := host.BootID()
	if err != nil {
		return nil, nil, err
	}
	if g.notes, g.machine, g.hidden, err = readNotes(c.RunDir, boot, c.Authority); err != nil {
		c.Log.LogAttrs(ctx, slog.LevelError, "what the former warden knew is lost", slog.Any("err", err))
	}
	if c.Cgroup != "" {
		cgroups, err := host.OpenCgroups(c.Cgroup)
		if err != nil {
			c.Log.LogAttrs(ctx, slog.LevelWarn, "vms cannot be frozen or killed when this host's authority ends", slog.Any("err", err))
		} else {
			g.groups = cgroups
		}
	}
	alarm, err := host.NewAlarm()
	if err != nil {
		return nil, nil, err
	}
	g.clock = clock{now: host.Boottime, ring: alarm.C, setAt: alarm.Set}
	g.said.Store(&hello{fences: g.machine.Fences, until: g.machine.Until})
	go g.log.run(context.WithoutCancel(ctx))
	go g.run() // it ends when it may, not with ctx: the roles are ended first, and then VMs may still have to be
	return g, func() {
		g.end()
		g.log.close()
		_ = alarm.Close() // nothing is written to it
	}, nil
}

// send hands a word to the guard, unless that has ended.
func (g *guard) send(w word) {
	select {
	case g.words <- w:
	case <-g.over:
	}
}
