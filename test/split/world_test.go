package split

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
	"github.com/godwit-vm/godwit/test/oracle"
)

// world is a cluster under the oracle's eyes.
type world struct {
	seed    uint64
	dice    *rand.Rand
	cluster *lab.Cluster
	oracle  *oracle.Oracle
	mu      sync.Mutex
	mounts  map[string]*oracle.Mount // by host
	vms     []*vm
	clients *clients
	// lostPass: what a host writes that has lost its locks reaches the disk all the same.
	lostPass bool
	// watchdogs: each host has one, so that the others can know that it is dead when it falls silent.
	watchdogs bool
}

// vm is a VM whose guest writes.
type vm struct{ name, id, file string }

// lockLife is how long the storage keeps the locks of a host that is cut off.
const lockLife = 3 * time.Second

// newWorld draws a world from the seed.
func newWorld(seed uint64) *world {
	w := &world{seed: seed, dice: rand.New(rand.NewPCG(seed, 0)), mounts: map[string]*oracle.Mount{}} //nolint:gosec // to be had again from the seed
	w.lostPass = w.dice.IntN(2) == 0
	w.watchdogs = w.dice.IntN(4) > 0
	return w
}

// begin starts a cluster with a writing VM on each host. On an error nothing is left.
func (w *world) begin(ctx context.Context, hosts int) (err error) {
	cache, err := guest.Cache()
	if err != nil {
		return err
	}
	w.cluster, err = lab.Start(ctx, lab.Options{
		Binary: binary, Hosts: hosts, Cache: filepath.Join(cache, "probes"), Cables: true, Watchdog: w.watchdogs,
		Fires: func(h *lab.Host) { // what a dead machine has not sent is never done
			if m := w.mount(h); m != nil {
				m.Set(oracle.Gone)
			}
		},
		Storage: func(c *lab.Cluster, h *lab.Host) (string, error) {
			if w.oracle == nil {
				w.oracle = oracle.New(c.Datastore, oracle.Options{LockLife: lockLife, LostLocksPass: w.lostPass})
			}
			m, err := w.oracle.Mount(h.Name, filepath.Join(h.Folder(), "shared"))
			if err != nil {
				return "", err
			}
			w.mu.Lock()
			w.mounts[h.Name] = m
			w.mu.Unlock()
			return m.At, nil
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if err := os.WriteFile(filepath.Join(w.cluster.Datastore, idleROM), tiny.Idle(), 0o644); err != nil { //nolint:gosec // QEMU's user reads it
		return err
	}
	if err := w.members(ctx); err != nil {
		return err
	}
	for i, h := range w.cluster.Hosts {
		if err := w.addVM(ctx, i+1, h); err != nil {
			return err
		}
	}
	for _, v := range w.vms {
		if err := w.writes(ctx, v, w.oracle.Now(), startMax); err != nil {
			return err
		}
	}
	return nil
}

// members waits until each host carries a voting member of the store.
func (w *world) members(ctx context.Context) error {
	return lab.Until(ctx, startMax, func() error {
		info := &godwitv1.GetClusterResponse{}
		if err := w.cluster.Hosts[0].Read(ctx, info, "cluster", "info"); err != nil {
			return err
		}
		voting := 0
		for _, m := range info.GetMembers() {
			if !m.GetLearner() && m.GetError() == "" {
				voting++
			}
		}
		if voting != len(w.cluster.Hosts) {
			return fmt.Errorf("the store has %d voting members that answer, and there are %d hosts", voting, len(w.cluster.Hosts))
		}
		return nil
	})
}

// addVM makes and starts a writing VM.
func (w *world) addVM(ctx context.Context, n int, h *lab.Host) error {
	v := &vm{name: fmt.Sprintf("writer-%d", n), file: fmt.Sprintf("writer-%d.raw", n)}
	path := filepath.Join(w.cluster.Datastore, v.file)
	if err := os.WriteFile(path, tiny.Writer(), 0o600); err != nil {
		return err
	}
	if _, err := h.Godwit(ctx, "vm", "create", v.name, "--memory", "48M", "--display=false", "--disk", v.file+",format=raw"); err != nil {
		return err
	}
	made, err := h.VM(ctx, v.name)
	if err != nil {
		return err
	}
	v.id = made.GetId()
	w.vms = append(w.vms, v)
	_, err = h.Godwit(ctx, "vm", "start", v.name)
	return err
}

// images names the VM of each image, for the oracle.
func (w *world) images() map[string]string {
	all := map[string]string{}
	for _, v := range w.vms {
		all[v.file] = v.id
	}
	return all
}

// note puts a line into the story.
func (w *world) note(host, format string, args ...any) {
	w.oracle.Note(host, fmt.Sprintf(format, args...))
}

// until waits for an entry of the log that is as wanted, from one made at since on.
func (w *world) until(ctx context.Context, since, most time.Duration, wanted func(oracle.Entry) bool) (oracle.Entry, error) {
	ctx, done := context.WithTimeout(ctx, most)
	defer done()
	for n := 0; ; {
		entries, more := w.oracle.Since(n)
		n += len(entries)
		for _, e := range entries {
			if e.At >= since && wanted(e) {
				return e, nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return oracle.Entry{}, ctx.Err()
		}
	}
}

// freshMin is how many blocks a guest must write to count as writing: one may have been on its way.
const freshMin = 3

// writes waits until the VM's guest has written blocks since the moment, whichever host it runs on.
func (w *world) writes(ctx context.Context, v *vm, since, most time.Duration) error {
	count, last := 0, uint64(0)
	_, err := w.until(ctx, since, most, func(e oracle.Entry) bool {
		if e.Kind == oracle.Wrote && e.File == v.file && e.Number > last {
			count, last = count+1, e.Number
		}
		return count == freshMin
	})
	if err != nil {
		return fmt.Errorf("%s does not write within %v: %w", v.name, most, err)
	}
	return nil
}

// lastWriter is the host that wrote to the VM's image last.
func (w *world) lastWriter(v *vm) string {
	for _, e := range slices.Backward(w.oracle.Log()) {
		if e.Kind == oracle.Wrote && e.File == v.file && e.Number > 0 {
			return e.Host
		}
	}
	return ""
}

// on lists the VMs that the host wrote for last.
func (w *world) on(h *lab.Host) (all []*vm) {
	for _, v := range w.vms {
		if w.lastWriter(v) == h.Name {
			all = append(all, v)
		}
	}
	return all
}

// others are the hosts but one.
func (w *world) others(h *lab.Host) (all []*lab.Host) {
	for _, o := range w.cluster.Hosts {
		if o != h {
			all = append(all, o)
		}
	}
	return all
}

// record reads a VM's record by any host that answers.
func (w *world) record(ctx context.Context, v *vm) (*godwitv1.VM, error) {
	var all error
	for _, h := range w.cluster.Hosts {
		within, done := context.WithTimeout(ctx, askMax)
		found, err := h.VM(within, v.name)
		done()
		if err == nil {
			return found, nil
		}
		all = errors.Join(all, err)
	}
	return nil, all
}

// askMax bounds a question to a host that may be dead.
const askMax = 5 * time.Second

// places lists what speaks against each VM running at exactly one place, as processes, store and log have it.
func (w *world) places(ctx context.Context) (bad []string) {
	for _, v := range w.vms {
		var at []string
		for _, h := range w.cluster.Hosts {
			for range h.QEMUs(v.id) {
				at = append(at, h.Name)
			}
		}
		r, err := w.record(ctx, v)
		switch {
		case err != nil:
			bad = append(bad, fmt.Sprintf("%s: %v", v.name, err))
		case len(at) != 1 || at[0] != r.GetRun().GetOwner() || r.GetStatus().GetState() != "running":
			bad = append(bad, fmt.Sprintf("%s has QEMUs on %v, its owner is %s, it is %s: %s %s", v.name, at, r.GetRun().GetOwner(),
				r.GetStatus().GetState(), r.GetStatus().GetDetail(), r.GetPlace().GetBlocked()))
		}
	}
	return bad
}

// leftovers lists what hosts have of VMs that run elsewhere.
func (w *world) leftovers(ctx context.Context) (left []string) {
	for _, v := range w.vms {
		owner := w.lastWriter(v)
		for _, h := range w.cluster.Hosts {
			if h.Name != owner {
				left = append(left, h.Leftovers(ctx, v.id)...)
			}
		}
	}
	return left
}

// alarms are what no log of a host may have.
func (w *world) alarms() (bad []string) {
	for _, h := range w.cluster.Hosts {
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			bad = append(bad, err.Error())
		}
		if alarm := lab.Alarm(text); alarm != "" {
			bad = append(bad, fmt.Sprintf("%s: %.2000s", h.Name, alarm))
		}
	}
	return bad
}

// mount is how the host sees the storage.
func (w *world) mount(h *lab.Host) *oracle.Mount {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mounts[h.Name]
}

// victim is a host that has a VM.
func (w *world) victim() *lab.Host {
	var some []*lab.Host
	for _, h := range w.cluster.Hosts {
		if len(w.on(h)) > 0 {
			some = append(some, h)
		}
	}
	return some[w.dice.IntN(len(some))]
}

// leadsRE is what an agent logs when it begins or ends to lead.
var leadsRE = regexp.MustCompile(`msg="leads the cluster( no longer)?" .*term=(\d+)`)

// leader is the host with the newest term, as the hosts' logs have it; nil: none leads.
func (w *world) leader() (found *lab.Host) {
	top := 0
	for _, h := range w.cluster.Hosts {
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			continue // it has not begun yet
		}
		for _, m := range leadsRE.FindAllStringSubmatch(string(text), -1) {
			term, err := strconv.Atoi(m[2])
			switch {
			case err != nil || term < top:
			case m[1] != "" && term == top:
				found = nil
			case m[1] == "":
				found, top = h, term
			}
		}
	}
	return found
}

// migrate begins a migration of a VM that is on the host, or of one that is elsewhere to the host, and says which.
func (w *world) migrate(ctx context.Context, h *lab.Host) (string, error) {
	others := w.others(h)
	source, target := h, others[w.dice.IntN(len(others))]
	if w.dice.IntN(2) == 0 && len(w.on(target)) > 0 {
		source, target = target, source
	}
	vms := w.on(source)
	v := vms[w.dice.IntN(len(vms))]
	text := fmt.Sprintf("%s from %s to %s", v.name, source.Name, target.Name)
	w.note("", "migration of %s", text)
	rates := []string{"512K", "2M", "64M"} // slow enough to be met in each phase
	args := []string{"vm", "migrate", v.name, "--to", target.Name, "--detach", "--bandwidth", rates[w.dice.IntN(len(rates))]}
	// A host that was fenced and is back begins anew with another agent: for a moment it does not answer, and is refused as a target.
	for tries := 0; ; tries++ {
		_, err := source.Godwit(ctx, args...)
		if err == nil || tries == migrateTries {
			return text, err
		}
		w.note("", "migration not begun: %v", err)
		if err := w.pass(ctx, time.Second); err != nil {
			return text, err
		}
	}
}

// migrateTries is how often a migration is asked for again, once a second.
const migrateTries = 15

// quorumWithout says why the store would not be there without the host: each host carries a voting member.
func (w *world) quorumWithout(h *lab.Host) error {
	left := 0
	for _, o := range w.others(h) {
		left += min(1, len(o.Role("store")))
	}
	if all := len(w.cluster.Hosts); left <= all/2 {
		return fmt.Errorf("without %s only %d of %d members of the store run: nobody could restart anything", h.Name, left, all)
	}
	return nil
}

// revive starts every host that its watchdog has reset, and returns how many there were.
func (w *world) revive(ctx context.Context) (resets int, err error) {
	for _, h := range w.cluster.Hosts {
		for h.Resets() > 0 {
			reset, err := h.WaitReset(ctx)
			if err != nil {
				return resets, err
			}
			resets++
			w.note(h.Name, "was reset by its watchdog, %v late, and boots", reset.Late().Round(time.Millisecond))
			if err := w.boot(ctx, h); err != nil {
				return resets, err
			}
		}
	}
	return resets, nil
}

// boot starts a host that has been reset or was without power.
func (w *world) boot(ctx context.Context, h *lab.Host) error {
	w.mount(h).Set(oracle.Fine)
	ctx, done := context.WithTimeout(ctx, startMax)
	defer done()
	return h.Up(ctx)
}

// restartStuck does for VMs whose QEMU has lost its locks on the storage what only an operator can: their power is cut, and they start anew. It returns how
// many there were.
func (w *world) restartStuck(ctx context.Context) (restarted int, err error) {
	for _, v := range w.vms {
		r, err := w.record(ctx, v)
		if err != nil {
			return restarted, err
		}
		if r.GetStatus().GetState() != "paused" || !strings.HasPrefix(r.GetStatus().GetDetail(), "a disk failed") {
			continue
		}
		restarted++
		h := w.cluster.Hosts[0]
		if _, err := h.Godwit(ctx, "vm", "stop", "--force", v.name); err != nil {
			return restarted, err
		}
		if _, err := h.Godwit(ctx, "vm", "start", v.name); err != nil {
			return restarted, err
		}
	}
	return restarted, nil
}

// close ends everything.
func (w *world) close() error {
	if w.cluster == nil {
		return nil
	}
	for _, h := range w.cluster.Hosts {
		h.Thaw() // a stopped process hears nothing of its end
	}
	for _, h := range w.cluster.Hosts {
		if m := w.mount(h); m != nil {
			m.Set(oracle.Fine)
		}
	}
	var all error
	for _, h := range slices.Backward(w.cluster.Hosts) {
		all = errors.Join(all, h.Down())
	}
	if w.oracle != nil { // nothing waits in it any more when the processes are swept
		all = errors.Join(all, w.oracle.Close())
	}
	return errors.Join(all, w.cluster.Close())
}
