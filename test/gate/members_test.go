package gate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

// members lists the hosts that carry a member of the store which votes, as the host sees it.
func members(ctx context.Context, h *lab.Host) ([]string, error) {
	resp := &godwitv1.ListHostsResponse{}
	if err := h.Read(ctx, resp, "host", "ls"); err != nil {
		return nil, err
	}
	var names []string
	for _, one := range resp.GetHosts() {
		if one.GetStore() == "member" {
			names = append(names, one.GetId())
		}
	}
	slices.Sort(names)
	return names, nil
}

// waitMembers waits until these hosts and no others carry the store.
func waitMembers(t *testing.T, h *lab.Host, want ...string) {
	t.Helper()
	err := lab.Until(step(t), stepMax, func() error {
		got, err := members(t.Context(), h)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("the store's members are %v, not %v", got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The story: three hosts carry the store. The first, which made the cluster, dies for good. The others answer, make VMs, and take it out; a
// fourth host joins through one of them and takes its place in the store. The old machine comes back and is told; it joins again under its old
// name.
func TestTheFirstHostIsOneOfMany(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Options{Hosts: 3})
	first, second := c.Hosts[0], c.Hosts[1]
	waitMembers(t, second, "host-1", "host-2", "host-3")
	if err := os.WriteFile(filepath.Join(c.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, args ...string) {
		t.Helper()
		_, err := second.Godwit(step(t), args...)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("godwit %s: %v", strings.Join(args, " "), err)
		}
	}
	refused("it is the host that you ask", "host", "remove", "host-2")
	refused("it answers", "host", "remove", "host-1", "--force")
	refused("no host", "host", "remove", "host-9")

	if err := first.PullPlug(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"vm", "create", "web", "--memory", "48M", "--firmware", "tiny.rom", "--disk", "size=16M"},
		{"vm", "start", "web"},
	} {
		if err := lab.Until(step(t), stepMax, func() error { _, err := second.Godwit(t.Context(), args...); return err }); err != nil {
			t.Fatal(err)
		}
	}
	refused("it does not answer", "host", "remove", "host-1")
	refused("nobody has proven that it is dead", "host", "remove", "host-1", "--force")
	for _, args := range [][]string{{"host", "confirm-dead", "host-1", "--yes"}, {"host", "remove", "host-1", "--force"}} {
		if err := lab.Until(step(t), stepMax, func() error { _, err := second.Godwit(t.Context(), args...); return err }); err != nil {
			t.Fatal(err)
		}
	}
	fourth, err := c.AddHost(step(t))
	if err != nil {
		t.Fatal(err)
	}
	waitMembers(t, fourth, "host-2", "host-3", "host-4")

	// The old machine with its old folder.
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	waitForLog(t, first, "was removed from cluster godwit")
	if err := first.PullPlug(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(first.Data); err != nil {
		t.Fatal(err)
	}
	if err := first.Join(step(t)); err != nil {
		t.Fatal(err)
	}
	if err := first.Up(step(t)); err != nil {
		t.Fatal(err)
	}
	if got, err := members(step(t), first); err != nil || !slices.Equal(got, []string{"host-2", "host-3", "host-4"}) {
		t.Errorf("the store's members are %v (%v)", got, err)
	}
}

// The story: two hosts and a witness. Each of the three dies in turn, and comes back; the other two go on.
func TestTwoHostsAndAWitness(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Options{Hosts: 2})
	waitMembers(t, c.Hosts[0], "host-1")
	if _, err := c.AddWitness(step(t)); err != nil {
		t.Fatal(err)
	}
	waitMembers(t, c.Hosts[1], "host-1", "host-2", "host-3")
	for n, dead := range c.Hosts {
		other := c.Hosts[(n+1)%2]
		if err := dead.PullPlug(); err != nil {
			t.Fatal(err)
		}
		err := lab.Until(step(t), stepMax, func() error {
			_, err := other.Godwit(t.Context(), "network", "create", fmt.Sprintf("lan-%d", n))
			return err
		})
		if err != nil {
			t.Fatalf("without %s: %v", dead.Name, err)
		}
		if n == 2 {
			break // the witness stays away
		}
		if err := dead.Up(step(t)); err != nil {
			t.Fatal(err)
		}
	}
}
