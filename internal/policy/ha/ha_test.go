package ha

import (
	"fmt"
	"slices"
	"testing"

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
		g := inventory.Generation(8)
		if stands {
			g = 9 // the heir's is burnt
		}
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
