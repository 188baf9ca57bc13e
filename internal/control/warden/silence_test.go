package warden

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// The story: only silence that a role can help counts.
func TestSilence(t *testing.T) {
	never := func() time.Duration { return 0 }
	serving := func() silence {
		var s silence
		if !s.alive(0) || s.alive(0) {
			t.Fatal("the first sign of life is the first, and no other")
		}
		return s
	}
	for _, c := range []struct {
		story  string
		s      silence
		ran    time.Duration
		waits  []time.Duration // what the kernel says at each question
		silent bool
	}{
		{"a role that serves may miss three beats", serving(), 2000 * ms, nil, false},
		{"after two seconds it is silent", serving(), 2001 * ms, nil, true},
		{"one that starts may take its time", silence{}, 59 * time.Second, nil, false},
		{"but not for ever", silence{}, 61 * time.Second, nil, true},
		{"one that waits for a processor is waited for", silence{ready: true, doubted: true, waited: 5 * time.Second}, 3 * time.Second, []time.Duration{7 * time.Second}, false},
		{"what it waited before does not count", silence{ready: true, doubted: true, waited: 5 * time.Second}, 3 * time.Second, []time.Duration{5 * time.Second}, true},
		{"nor does it count without end", silence{ready: true, doubted: true}, 11 * time.Second, []time.Duration{time.Hour}, true},
	} {
		asked := 0
		waits := func() time.Duration {
			if asked >= len(c.waits) {
				return never()
			}
			asked++
			return c.waits[asked-1]
		}
		if quiet, silent := c.s.judge(c.ran, waits); silent != c.silent {
			t.Errorf("%s: silent is %v after %v", c.story, silent, quiet)
		}
	}
}

// The story: the machine stands still for an hour, or this process alone does; nobody has been silent for it.
func TestAStillWardenAccusesNobody(t *testing.T) {
	var a awake
	now := time.Now()
	a.look(now)
	var s silence
	s.alive(a.look(now.Add(100 * ms)))
	ran := a.look(now.Add(time.Hour))
	if quiet, silent := s.judge(ran, func() time.Duration { return 0 }); silent || quiet > silentMax/2 {
		t.Errorf("an hour counts as %v", quiet)
	}
	// From then on the time counts again.
	for i := range 8 {
		ran = a.look(now.Add(time.Hour + time.Duration(i+1)*lookEvery))
	}
	if _, silent := s.judge(ran, func() time.Duration { return 0 }); !silent {
		t.Error("after the hour a role may be silent for as long as it likes")
	}
}

func TestPauses(t *testing.T) {
	b := newBackoff()
	for i, want := range []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5 * time.Second, 5 * time.Second} {
		if got := b.next(false, 0); got != want {
			t.Errorf("a role that never serves: pause %d is %v, not %v", i, got, want)
		}
	}
	for i := range creditsMax {
		if got := b.next(true, time.Second); got != pauseMin {
			t.Fatalf("a role that served: pause %d is %v", i, got)
		}
	}
	b.next(true, time.Second)
	if got := b.next(true, time.Second); got <= pauseMin {
		t.Errorf("a role that serves for a second only, time and again, starts again after %v", got)
	}
	if got := b.next(true, time.Minute); got != pauseMin {
		t.Errorf("after a minute's service: %v", got)
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		story string
		facts cgroupFacts
		want  placement
	}{
		{"started by hand", cgroupFacts{Own: "/user.slice/user-0.slice/session-3.scope"}, placement{VMs: "godwit/run-godwit"}},
		{"no cgroup v2, or a container's root", cgroupFacts{Own: "/"}, placement{VMs: "godwit/run-godwit"}},
		{
			"systemd's unit with Delegate=yes",
			cgroupFacts{"/system.slice/godwit.service", "/system.slice/godwit.service"},
			placement{Roles: "system.slice/godwit.service/roles", VMs: "system.slice/godwit.service/vms"},
		},
		{
			"systemd has put us into the leaf itself (DelegateSubgroup=roles)",
			cgroupFacts{"/system.slice/godwit.service/roles", "/system.slice/godwit.service"},
			placement{VMs: "system.slice/godwit.service/vms"},
		},
		{
			"by hand in a session whose manager has a delegation of its own",
			cgroupFacts{"/user.slice/user-1000.slice/user@1000.service/app.slice/shell.scope", "/user.slice/user-1000.slice/user@1000.service"},
			placement{VMs: "godwit/run-godwit"},
		},
		{"right below somebody else's delegation", cgroupFacts{"/machine.slice/box.scope/shell", "/machine.slice/box.scope"}, placement{VMs: "godwit/run-godwit"}},
	} {
		if got := place(c.facts, "/run/godwit"); got != c.want {
			t.Errorf("%s: %+v, not %+v", c.story, got, c.want)
		}
	}
}
