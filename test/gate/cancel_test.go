package gate

import (
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: a user changes their mind in pre-copy, twice, and from either host; the VM stays, and nothing of the attempts does.
// What has arrived cannot be canceled.
func TestCancel(t *testing.T) {
	t.Parallel()
	f := takeOff(t)
	for _, by := range f.Hosts {
		t.Run("asked at "+by.Name, func(t *testing.T) {
			source, target := f.here(t)
			before := f.info(t)
			id := f.begin(t, source, target, slowCopy...)
			if err := source.WatchMigration(step(t), id, func(m *godwitv1.Migration) bool {
				return m.GetStatus().GetPhase() == inventory.PreCopy.String() && m.GetStatus().GetProgress().GetSent() > aimAt
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := by.Godwit(step(t), "migration", "cancel", id); err != nil {
				t.Fatal(err)
			}
			if phase := f.end(t, by, id).GetStatus().GetPhase(); phase != inventory.Canceled.String() {
				t.Errorf("the migration ended as %s", phase)
			}
			f.healthy(t, source)
			f.sameProcess(t, before)
			f.refuseCancel(t, by, id, "canceled already")
		})
	}
	from, to := f.here(t)
	m := f.move(t, from, to)
	f.healthy(t, to)
	f.refuseCancel(t, from, m.GetId(), "completed already")
	f.healthy(t, to)
}

// refuseCancel demands that the migration cannot be canceled any more, and that the reason says so.
func (f *flight) refuseCancel(t *testing.T, h *lab.Host, id, why string) {
	t.Helper()
	_, err := h.Godwit(step(t), "migration", "cancel", id)
	if lab.ExitCode(err) != 4 || !strings.Contains(err.Error(), why) {
		t.Errorf("canceling a migration that is over: %v", err)
	}
}
