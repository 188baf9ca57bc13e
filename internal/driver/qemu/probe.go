package qemu

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
)

// DefaultBinary is where Debian and most others put QEMU.
const DefaultBinary = "/usr/bin/qemu-system-x86_64"

// probeTimeMax bounds the questions to a probed QEMU, which take 0.1 s, without the proof of KVM.
const probeTimeMax = 10 * time.Second

// ProbeConfig says what is probed and where results are kept.
type ProbeConfig struct {
	Binary   string // "": DefaultBinary
	User     *User  // the one that VMs run as, since access to KVM depends on it
	CacheDir string // results by build; "": nothing is kept
	Fresh    bool   // ask and try again, whatever is kept
}

// probeVersion is part of every cache key. It grows when a probe asks or judges differently.
const probeVersion = "1"

// binary returns the path to probe.
func (c ProbeConfig) binary() string { return cmp.Or(c.Binary, DefaultBinary) }

// Probe finds out what a QEMU can do here: by asking it over QMP by name, and for KVM by running 64-bit code. The answer
// is kept in the cache directory until binary, kernel or user change. Takes 0.2 s, and up to 2.5 s more where there is a /dev/kvm.
//
// Errors: fault.NotFound without the binary, fault.Unavailable when it does not start or answer. A KVM that is not usable is no error:
// Accelerator is then TCG and Why says what is wrong.
func Probe(ctx context.Context, cfg ProbeConfig) (Abilities, error) {
	a, err := probe(ctx, cfg)
	a.NoCgroup = cgroupTrouble() // never kept: it depends on who asks
	return a, fault.Wrap("probe", cfg.binary(), err)
}

func probe(ctx context.Context, cfg ProbeConfig) (Abilities, error) {
	build, err := buildOf(cfg.binary())
	if err != nil {
		return Abilities{}, err
	}
	key := strings.Join([]string{probeVersion, cfg.binary(), build, hostKey(), cfg.User.String(), kvmAccess()}, " ")
	cached := cache[Abilities]{dir: cfg.CacheDir, name: "abilities-" + digest(cfg.binary())}
	if a, ok := cached.load(key); ok && !cfg.Fresh {
		return a, nil
	}
	a := Abilities{Path: cfg.binary(), Build: build, Accelerator: KVM}
	if a.Why = disproveKVM(ctx, cfg); a.Why != "" {
		a.Accelerator = TCG
	}
	if err := a.ask(ctx, cfg); err != nil {
		return Abilities{}, err
	}
	if err := ctx.Err(); err != nil {
		return Abilities{}, err // a proof that was cut short must not be kept
	}
	return a, cached.save(key, a)
}

// ask fills in what QEMU says of itself.
func (a *Abilities) ask(ctx context.Context, cfg ProbeConfig) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeMax)
	defer cancel()
	// No machine at all is the quickest start; -S since there is nothing to run.
	t, err := startTrial(ctx, a.Path, cfg.User, nil, "-machine", "none", "-accel", a.Accelerator, "-S")
	if err != nil {
		return err
	}
	defer t.close()
	for _, question := range []func(context.Context, *qmp.Conn) error{a.askVersion, a.askMachines, a.askCPUs, a.askFeatures} {
		if err := question(ctx, t.conn); err != nil {
			return err
		}
	}
	return nil
}

func (a *Abilities) askVersion(ctx context.Context, conn *qmp.Conn) error {
	v, err := conn.Version(ctx)
	a.Version = fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
	if v.Package != "" {
		a.Version += " (" + v.Package + ")"
	}
	return err
}

// askMachines keeps the versioned q35 types that are not on their way out, newest first.
func (a *Abilities) askMachines(ctx context.Context, conn *qmp.Conn) error {
	machines, err := conn.Machines(ctx)
	for _, m := range machines {
		if machineRE.MatchString(m.Name) {
			a.Machines = append(a.Machines, m.Name)
		}
	}
	slices.SortFunc(a.Machines, func(x, y string) int { return cmp.Compare(machineVersion(y), machineVersion(x)) })
	return err
}

// machineVersion makes "pc-q35-10.0" comparable.
func machineVersion(name string) int {
	major, minor, _ := strings.Cut(name[strings.LastIndex(name, "-")+1:], ".")
	m, _ := strconv.Atoi(major) // machineRE has seen to it
	n, _ := strconv.Atoi(minor)
	return m*1000 + n
}

// askCPUs keeps the named models that enforce would accept here. Models that stand for "whatever this host has" are not
// migration-safe, and their version aliases would only repeat the names.
func (a *Abilities) askCPUs(ctx context.Context, conn *qmp.Conn) error {
	models, err := conn.CPUModels(ctx)
	for _, m := range models {
		if m.MigrationSafe && m.AliasOf == "" && len(m.Unavailable) == 0 && m.Name != "base" {
			a.CPUModels = append(a.CPUModels, m.Name)
		}
	}
	// QEMU lists Name-v1 beside Name, and makes Name the alias of its newest version; Name is what people know.
	for _, m := range models {
		if m.AliasOf != "" && slices.Contains(a.CPUModels, m.AliasOf) {
			a.CPUModels = append(a.CPUModels, m.Name)
		}
	}
	slices.Sort(a.CPUModels)
	a.CPUModels = slices.Compact(a.CPUModels)
	return err
}

// askFeatures looks for every feature by its name in QEMU's own schema.
func (a *Abilities) askFeatures(ctx context.Context, conn *qmp.Conn) error {
	schema, err := conn.Schema(ctx)
	if err != nil {
		return err
	}
	capabilities, err := conn.MigrationCapabilities(ctx)
	if err != nil {
		return err
	}
	options, err := conn.CommandLineOptions(ctx)
	if err != nil {
		return err
	}
	for name := range capabilities {
		a.Capabilities = append(a.Capabilities, name)
	}
	slices.Sort(a.Capabilities)
	has := map[string]bool{
		FeatureSandbox:      options["sandbox"],
		FeatureIOUring:      slices.Contains(schema.ArgumentValues("blockdev-add", "file", "aio"), "io_uring") && kernelHasIOUring(),
		FeatureReconnect:    schema.HasArgument("netdev_add", "stream", "reconnect-ms"),
		FeatureStayOnError:  schema.HasArgument("migrate-incoming", "exit-on-error"),
		FeatureBlockActive:  schema.HasResult("query-named-block-nodes", "active"),
		FeatureSwitchoverBW: schema.HasArgument("migrate-set-parameters", "avail-switchover-bandwidth"),
	}
	for _, capability := range []string{
		FeatureSwitchoverAck, FeatureMappedRAM, FeatureMultifd, FeaturePostcopy, FeaturePreempt, FeatureDirtyLimit,
		FeatureReturnPath, FeaturePause, FeatureLateActivate, FeatureValidateUUID, FeatureAutoConverge, FeatureEvents,
	} {
		_, has[capability] = capabilities[capability]
	}
	for name, there := range has {
		if there {
			a.Features = append(a.Features, name)
		}
	}
	slices.Sort(a.Features)
	return nil
}

// kernelHasIOUring reports whether the kernel lets an unprivileged process have a ring. The setting is asked as well as tried: with 1 root
// still gets one, but QEMU's user does not (kernel documentation, "io_uring_disabled").
func kernelHasIOUring() bool {
	if text, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled"); err == nil && strings.TrimSpace(string(text)) != "0" {
		return false
	}
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return false
	}
	_ = unix.Close(int(fd)) // nothing was submitted
	return true
}

// hostKey changes when the kernel does, on which KVM and io_uring depend.
func hostKey() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Version[:])
}
