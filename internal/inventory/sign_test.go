package inventory

import "testing"

// What a sign of a host says of the heir there, and of a VM's owner and heir: a boot ends what the heir had, and not what the owner may know.
func TestSigns(t *testing.T) {
	run := VMRun{Owner: "host-1", Generation: 1, Heir: Heir{Host: "host-2", Generation: 2, Migration: "mig-1", BootID: "boot-1\n"}}
	for name, c := range map[string]struct {
		sign        Sign
		why         string
		owner, heir bool // dead
	}{
		"lives":        {Sign{BootID: "boot-1"}, "", false, false},
		"booted":       {Sign{BootID: "boot-2"}, "host host-2 was booted since", false, true},
		"not known":    {Sign{}, "", false, false},
		"fenced":       {Sign{BootID: "boot-1", Fenced: true, Why: "it was silent"}, "it was silent", true, true},
		"removed":      {Sign{Removed: true}, "host host-2 was removed from the cluster", true, true},
		"fenced, back": {Sign{BootID: "boot-1", Why: "it was silent"}, "", false, false},
	} {
		if why, lost := run.Heir.Lost(c.sign); why != c.why || lost != c.heir {
			t.Errorf("%s: lost %t, because %q", name, lost, why)
		}
		if owner, heir := run.Dead("host-1", c.sign), run.Dead("host-2", c.sign); owner != c.owner || heir != c.heir {
			t.Errorf("%s: owner dead %t, heir dead %t", name, owner, heir)
		}
		if _, lost := (Heir{}).Lost(c.sign); lost {
			t.Errorf("%s: nobody is heir, and is lost", name)
		}
	}
}
