package ha

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Every combination of facts, against the rules said another way.
func TestDecideEveryCase(t *testing.T) {
	lives, no := []Life{Living, Silent, Dead}, inventory.Heir{}
	heir := inventory.Heir{Host: "b", Generation: 8, Migration: "mig-1"}
	cases := 0
	for _, owner := range lives {
		for _, h := range append(slices.Clone(lives), "") { // "": no heir stands
			for bits := range 16 {
				c := Case{Owner: owner, Heir: h, HeirDiscarded: bits&1 != 0, OwnerDiscarded: bits&2 != 0, Run: inventory.VMRun{Owner: "a", Generation: 7, Heir: heir}}
				if h == "" {
					c.Run.Heir = no
				}
				if bits&4 != 0 {
					c.Run.Wanted = inventory.PowerOn
				}
				if bits&8 != 0 {
					c.Run.GivenUp = c.Run.Generation
				}
				cases++
				if got, want := Decide(c), rules(c); got != want {
					t.Errorf("%s: %+v, not %+v", describe(c), got, want)
				}
			}
		}
	}
	t.Logf("%d cases", cases)
}

func describe(c Case) string {
	return fmt.Sprintf("owner %s (discarded %t), heir %q (discarded %t), wanted %v, given up %d", c.Owner, c.OwnerDiscarded, c.Heir, c.HeirDiscarded, c.Run.Wanted, c.Run.GivenUp)
}

// rules says what docs/architecture.md says. A VM gets a new owner when neither of those that may run it can run it any more; otherwise
// somebody is waited for, asked or told.
func rules(c Case) Decision {
	stands := !c.Run.Heir.IsZero()
	ownerOut := c.Owner == Dead || stands && c.Heir == Dead && c.OwnerDiscarded
	ownerOut = ownerOut || !stands && c.Owner == Living && c.Run.GivenUp == 7 && c.Run.Wanted == inventory.PowerOn
	heirOut := !stands || c.Heir == Dead || c.Owner == Dead && c.HeirDiscarded
	switch {
	case ownerOut && heirOut:
		g := inventory.Generation(9) // 8 is the heir's, or was that of a migration's target that was not named heir
		if c.Run.Wanted == inventory.PowerOn {
			return Decision{Kind: Restart, Generation: g}
		}
		return Decision{Kind: Release, Generation: g}
	case c.Owner == Silent:
		return Decision{Kind: Wait, Wait: "a"}
	case c.Owner == Living && stands && c.Heir == Dead:
		return Decision{Kind: TellOwner}
	case c.Owner == Living:
		return Decision{Kind: Leave}
	case c.Heir == Silent:
		return Decision{Kind: Wait, Wait: "b"}
	}
	return Decision{Kind: AskDiscard}
}

// A generation is never given twice: the new one is above the owner's and above the heir's.
func TestGenerationGrows(t *testing.T) {
	for _, g := range []inventory.Generation{0, 1, 7, 100} {
		for _, h := range []inventory.Generation{0, g, g + 1, g + 5} {
			run := inventory.VMRun{Owner: "a", Generation: g, Heir: inventory.Heir{Host: "b", Generation: h, Migration: "mig-1"}}
			d := Decide(Case{Run: run, Owner: Dead, Heir: Dead})
			if d.Generation <= g || d.Generation <= h {
				t.Errorf("generation %d after %d and %d", d.Generation, g, h)
			}
		}
	}
}

// A case knows an heir for dead by a boot since it was named, and an owner never by that: its agent knows what is left of the VM.
func TestNewCase(t *testing.T) {
	life := func(id inventory.HostID) Life { return map[inventory.HostID]Life{"a": Living, "b": Silent}[id] }
	run := inventory.VMRun{Owner: "a", Generation: 7, Heir: inventory.Heir{Host: "b", Generation: 8, Migration: "mig-1", BootID: "boot-1"}}
	for _, c := range []struct {
		heir inventory.Sign
		want Life
	}{
		{inventory.Sign{BootID: "boot-1"}, Silent},
		{inventory.Sign{BootID: "boot-2"}, Dead},
		{inventory.Sign{BootID: "boot-1", Fenced: true}, Dead},
		{inventory.Sign{Removed: true}, Dead},
	} {
		if got := NewCase(run, life, c.heir); got != (Case{Run: run, Owner: Living, Heir: c.want}) {
			t.Errorf("%+v: %+v", c.heir, got)
		}
	}
	run.Heir = inventory.Heir{}
	if got := NewCase(run, life, inventory.Sign{Removed: true}); got != (Case{Run: run, Owner: Living, Heir: Living}) || got.Dead() != nil {
		t.Errorf("without an heir: %+v", got)
	}
}

// Of every case: what a new owner stands on is compared again, or is somebody's final word; the owner's word is read where it counts and only there; and
// the records get what was decided.
func TestWhatADecisionStandsOn(t *testing.T) {
	given := 0
	for _, owner := range []Life{Living, Silent, Dead} {
		for _, heir := range []Life{Living, Silent, Dead} {
			for bits := range 16 {
				c := Case{
					Owner: owner, Heir: heir, HeirDiscarded: bits&1 != 0, OwnerDiscarded: bits&2 != 0,
					Run: inventory.VMRun{Owner: "a", Generation: 7, Heir: inventory.Heir{Host: "b", Generation: 8, Migration: "mig-1"}},
				}
				if bits&4 != 0 {
					c.Run.Wanted = inventory.PowerOn
				}
				if bits&8 != 0 {
					c.Run.Heir = inventory.Heir{}
				}
				other := c
				other.OwnerDiscarded = !c.OwnerDiscarded
				if counts := Decide(c) != Decide(other); counts != c.AsksOwner() {
					t.Errorf("%s: the owner's word counts: %t, and is asked for: %t", describe(c), counts, c.AsksOwner())
				}
				d := Decide(c)
				if d.Kind != Restart && d.Kind != Release {
					continue
				}
				given++
				stands := !c.Run.Heir.IsZero()
				if !slices.Contains(c.Dead(), "a") && (!stands || !c.OwnerDiscarded) || stands && !slices.Contains(c.Dead(), "b") && !c.HeirDiscarded {
					t.Errorf("%s: %s stands on the death of %v", describe(c), d.Kind, c.Dead())
				}
				at := time.Unix(1, 0)
				run, place := d.Give(c.Run, inventory.VMPlace{Blocked: "b is silent", Since: at, Restarts: 2}, "c", "a is dead", at)
				want := inventory.VMRun{Owner: "c", Generation: d.Generation, Wanted: c.Run.Wanted}
				said := inventory.VMPlace{Restarts: 2}
				if d.Kind == Restart {
					said = inventory.VMPlace{Restarts: 3, Restart: inventory.Restart{Generation: d.Generation, From: "a", Why: "a is dead", At: at}}
				}
				if run != want || place != said {
					t.Errorf("%s: %+v, %+v", describe(c), run, place)
				}
			}
		}
	}
	if given == 0 {
		t.Error("nothing was given")
	}
}

func TestChoose(t *testing.T) {
	gib := inventory.GiB
	all := []Candidate{
		{Host: "d", Free: 4 * gib, VMs: 2},
		{Host: "b", Free: 4 * gib, VMs: 1},
		{Host: "a", Free: 9 * gib, Against: []string{"a has no network lan", "a has no machine type x"}},
		{Host: "c", Free: 4 * gib, VMs: 1},
	}
	if host, reasons := Choose(all); host != "b" || reasons != nil {
		t.Errorf("%s, %v", host, reasons)
	}
	slices.Reverse(all)
	if host, _ := Choose(all); host != "b" {
		t.Errorf("%s in another order", host)
	}
	host, reasons := Choose([]Candidate{all[1], {Host: "0", Against: []string{"0 is full"}}})
	if host != "" || !slices.Equal(reasons, []string{"0 is full", "a has no network lan", "a has no machine type x"}) {
		t.Errorf("%s, %v", host, reasons)
	}
	if why := NoHost(reasons); why != "no host can run it: 0 is full; a has no network lan; a has no machine type x" {
		t.Error(why)
	}
	if _, reasons := Choose(nil); NoHost(reasons) != "no host is up that could run it: start Godwit on one" {
		t.Error(NoHost(reasons))
	}
}
