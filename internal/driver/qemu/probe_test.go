package qemu_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func TestProbeFindsWhatQEMUCanDo(t *testing.T) {
	cfg := qemu.ProbeConfig{User: vmUser(t), CacheDir: t.TempDir()}
	began := time.Now()
	a, err := qemu.Probe(within(t), cfg)
	try(t, err)
	t.Logf("%s, accelerator %s (%s), %d machines, %d CPU models, features %v, in %v",
		a.Version, a.Accelerator, a.Why, len(a.Machines), len(a.CPUModels), a.Features, time.Since(began).Round(time.Millisecond))
	if (a.Accelerator == qemu.TCG) != (a.Why != "") {
		t.Errorf("accelerator %s because %q", a.Accelerator, a.Why)
	}
	if strings.Contains(a.Why, "\n") {
		t.Errorf("the reason takes more than one line: %q", a.Why)
	}
	if a.Machine() == "" || !slices.Contains(a.Machines, "pc-q35-7.2") {
		t.Errorf("machines %v", a.Machines)
	}
	if a.Accelerator == qemu.TCG && !slices.Contains(a.CPUModels, "Westmere") {
		t.Errorf("CPU models %v", a.CPUModels)
	}
	for _, model := range []string{"max", "host", "base"} {
		if slices.Contains(a.CPUModels, model) {
			t.Errorf("%s is not the same on every host", model)
		}
	}
	for _, feature := range []string{qemu.FeatureSandbox, qemu.FeatureEvents, qemu.FeatureReturnPath, qemu.FeaturePause} {
		if !a.Has(feature) {
			t.Errorf("no %s", feature)
		}
	}
	if a.Has("no-such-thing") {
		t.Error("it has everything")
	}

	if os.Geteuid() != 0 && a.NoCgroup == "" {
		t.Error("an unprivileged agent that may make cgroups?")
	}
	if model := a.CPUModel(qemu.Vendor()); !slices.Contains(a.CPUModels, model) {
		t.Errorf("the default CPU model %q is not usable", model)
	}
	again, err := qemu.Probe(within(t), cfg)
	try(t, err)
	if again.Version != a.Version || !slices.Equal(again.Features, a.Features) || !slices.Equal(again.Machines, a.Machines) {
		t.Errorf("first %+v, then %+v", a, again)
	}
}

// The names that differ between the two versions we support are found, and not found, where they should be.
func TestOldAndNewQEMUDiffer(t *testing.T) {
	recent := abilities(t)
	before, err := qemu.Probe(within(t), qemu.ProbeConfig{Binary: oldQEMU(t)})
	try(t, err)
	t.Logf("%s: %v", before.Version, before.Features)
	for _, feature := range []string{
		qemu.FeatureReconnect, qemu.FeatureStayOnError, qemu.FeatureBlockActive, qemu.FeatureSwitchoverAck,
		qemu.FeatureMappedRAM, qemu.FeatureDirtyLimit, qemu.FeatureSwitchoverBW,
	} {
		if before.Has(feature) {
			t.Errorf("QEMU 7.2 has %s", feature)
		}
		if strings.HasPrefix(recent.Version, "10.") && !recent.Has(feature) {
			t.Errorf("QEMU 10 lacks %s", feature)
		}
	}
	if before.Machine() != "pc-q35-7.2" {
		t.Errorf("its newest machine is %s", before.Machine())
	}
}

func TestProbeIsKeptUntilTheBinaryChanges(t *testing.T) {
	dir := folder(t)
	binary := filepath.Join(dir, "qemu")
	script := "#!/bin/sh\nexec " + qemu.DefaultBinary + " \"$@\"\n"
	try(t, os.WriteFile(binary, []byte(script), 0o755))
	cfg := qemu.ProbeConfig{Binary: binary, User: vmUser(t), CacheDir: filepath.Join(dir, "cache")}
	a, err := qemu.Probe(within(t), cfg)
	try(t, err)

	files, err := os.ReadDir(cfg.CacheDir)
	try(t, err)
	if len(files) != 1 {
		t.Fatalf("the cache has %d files", len(files))
	}
	path := filepath.Join(cfg.CacheDir, files[0].Name())
	text, err := os.ReadFile(path)
	try(t, err)
	marked := strings.Replace(string(text), a.Version, "from the cache", 1)
	try(t, os.WriteFile(path, []byte(marked), 0o644))
	if a, err = qemu.Probe(within(t), cfg); err != nil || a.Version != "from the cache" {
		t.Errorf("version %q, %v: the cache was not used", a.Version, err)
	}
	fresh := cfg
	fresh.Fresh = true
	if a, err = qemu.Probe(within(t), fresh); err != nil || a.Version == "from the cache" {
		t.Errorf("version %q, %v: the cache was used though nobody wanted it", a.Version, err)
	}
	try(t, os.WriteFile(path, []byte(marked), 0o644))

	try(t, os.WriteFile(binary, []byte(script+"# another build\n"), 0o755))
	if a, err = qemu.Probe(within(t), cfg); err != nil || a.Version == "from the cache" {
		t.Errorf("version %q, %v: the cache outlived its binary", a.Version, err)
	}
	try(t, os.WriteFile(path, []byte("{"), 0o644))
	if _, err = qemu.Probe(within(t), cfg); err != nil {
		t.Errorf("a broken cache: %v", err)
	}
}

func TestProbeOfWhatIsNoQEMU(t *testing.T) {
	dir := folder(t)
	fake := filepath.Join(dir, "qemu")
	try(t, os.WriteFile(fake, []byte("#!/bin/sh\necho cannot run here >&2\nexit 3\n"), 0o755))
	for binary, want := range map[string]fault.Kind{
		"/nowhere/qemu": fault.NotFound,
		dir:             fault.Invalid,
		fake:            fault.Unavailable,
	} {
		_, err := qemu.Probe(within(t), qemu.ProbeConfig{Binary: binary, User: vmUser(t)})
		if !fault.Is(err, want) {
			t.Errorf("%s: kind %v of %v, want %v", binary, fault.KindOf(err), err, want)
		}
		if binary == fake && !strings.Contains(err.Error(), "cannot run here") {
			t.Errorf("its last words are lost: %v", err)
		}
	}
}

// oldQEMU is the QEMU 7.2 that make setup unpacks for this.
func oldQEMU(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("GODWIT_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		try(t, err)
		cache = filepath.Join(base, "godwit")
	}
	binary := filepath.Join(cache, "qemu-7.2", "qemu-system-x86_64")
	if _, err := os.Stat(binary); err != nil {
		release, _ := os.ReadFile("/etc/os-release") // without it this is no Debian 12
		if !strings.Contains(string(release), "VERSION_CODENAME=bookworm") {
			t.Skip("only Debian 12 has QEMU 7.2")
		}
		t.Fatalf("%v: run make setup", err)
	}
	return binary
}

func TestCorrectQEMUIsFoundGood(t *testing.T) {
	cfg := qemu.ProbeConfig{User: vmUser(t), CacheDir: t.TempDir()}
	began := time.Now()
	v, err := qemu.CheckMigration(within(t), cfg, qemu.TCG)
	try(t, err)
	t.Logf("%s, in %v", v.Detail, time.Since(began).Round(time.Millisecond))
	if v.State != inventory.VerdictGood {
		t.Errorf("verdict %v: %s", v.State, v.Detail)
	}
	// A verdict that is kept needs no guest, so not even a context that lasts long enough for one.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	again, err := qemu.CheckMigration(ctx, cfg, qemu.TCG)
	if err != nil || again != v {
		t.Errorf("kept %v, %v", again, err)
	}
	// One that was cut short is no verdict, and is not kept.
	cfg.CacheDir = t.TempDir()
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if v, err := qemu.CheckMigration(ctx, cfg, qemu.TCG); err == nil {
		t.Errorf("cut short, and yet %v", v)
	}
	if files, _ := os.ReadDir(cfg.CacheDir); len(files) > 0 {
		t.Errorf("%s was kept", files[0].Name())
	}
}

// QEMU 7.2 under TCG loses writes (facts of the project, and guest/tiny's tests). A probe that calls it good is blind.
func TestQEMUThatLosesWritesIsFoundBad(t *testing.T) {
	cfg := qemu.ProbeConfig{Binary: oldQEMU(t), CacheDir: t.TempDir()}
	v, err := qemu.CheckMigration(within(t), cfg, qemu.TCG)
	try(t, err)
	t.Log(v.Detail)
	if v.State != inventory.VerdictBad {
		t.Errorf("verdict %v: %s", v.State, v.Detail)
	}
}
