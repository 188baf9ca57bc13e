package warden

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how the host is, when systemd started this process (sd_notify(3)), and feeds its watchdog. It is
// called from the warden's loop only: a loop that stands still feeds nothing.
type notifier struct {
	log    *slog.Logger
	every  time.Duration // 0: nobody watches
	fed    time.Time
	ready  bool
	status string
	failed bool
}

func newNotifier(ctx context.Context, log *slog.Logger) notifier {
	n := notifier{log: log}
	most, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "systemd's watchdog is not fed", slog.Any("err", err))
	}
	n.every = most / 4
	return n
}

// tell sends what is new.
func (n *notifier) tell(ctx context.Context, now time.Time, w *warden) {
	var say []string
	if status := w.status(); status != n.status {
		n.status = status
		say = append(say, "STATUS="+status)
	}
	if w.ending {
		if n.ready {
			n.ready = false
			say = append(say, daemon.SdNotifyStopping)
		}
	} else if !n.ready && w.serves(w.Front) {
		n.ready = true
		say = append(say, daemon.SdNotifyReady)
	}
	if n.every > 0 && now.Sub(n.fed) >= n.every {
		n.fed = now
		say = append(say, daemon.SdNotifyWatchdog)
	}
	if len(say) == 0 {
		return
	}
	if _, err := daemon.SdNotify(false, strings.Join(say, "\n")); err != nil && !n.failed {
		n.failed = true
		n.log.LogAttrs(ctx, slog.LevelWarn, "systemd does not hear", slog.Any("err", err))
	}
}

// status is one line about all roles.
func (w *warden) status() string {
	var parts []string
	for _, c := range w.children {
		if c.Off && !c.running() {
			continue
		}
		said := c.said
		switch {
		case !c.running():
			said = "does not run"
		case said == "":
			said = "starting"
		}
		parts = append(parts, c.Name+": "+said)
	}
	return strings.Join(parts, "; ")
}

// serves reports whether the role has said that it lives.
func (w *warden) serves(role string) bool {
	for _, c := range w.children {
		if c.Name == role {
			return c.running() && c.silence.ready
		}
	}
	return false
}
