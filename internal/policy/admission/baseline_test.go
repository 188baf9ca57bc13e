package admission_test

import (
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
)

func TestBaselineIsTheBestModelOfAll(t *testing.T) {
	host := func(models ...string) inventory.Host {
		return inventory.Host{Spec: inventory.HostSpec{QEMU: inventory.QEMU{CPUModels: models}}}
	}
	for _, c := range []struct {
		name  string
		hosts []inventory.Host
		want  string
	}{
		{"no hosts", nil, ""},
		{"one host", []inventory.Host{host("qemu64", "Westmere", "Nehalem")}, "Westmere"},
		{"the older one decides", []inventory.Host{host("Haswell", "Nehalem", "qemu64"), host("Nehalem", "qemu64")}, "Nehalem"},
		{"nothing in common", []inventory.Host{host("Haswell"), host("EPYC")}, ""},
		{"a model that is not ranked does not count", []inventory.Host{host("max")}, ""},
	} {
		if got := admission.Baseline(c.hosts); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
