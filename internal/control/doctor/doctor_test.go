package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/watchdog"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const gib = inventory.GiB

// Each line is a machine, as far as one check looks at it, and what the doctor says of it. Whatever is not good says what to do.
func TestJudgements(t *testing.T) {
	now := time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)
	old := qemu.Abilities{Version: "7.2.0", Path: "/q", Capabilities: []string{"events"}, Features: []string{"sandbox"}}
	recent := qemu.Abilities{Version: "10.0.2", Path: "/q", Capabilities: []string{"events", "x"}, Features: []string{"sandbox", "netdev-reconnect"}}
	shared := Folder{Name: "shared", Path: "/mnt/vms", Shared: true}
	ext4, nfs := folderFacts{path: "/mnt/vms", kind: "ext4", free: 50 * gib, total: 100 * gib}, folderFacts{path: "/mnt/vms", kind: "nfs", free: 50 * gib, total: 100 * gib}
	dog := dogFacts{Facts: watchdog.Facts{There: true, Identity: "iTCO_wdt"}, device: "/dev/watchdog", timeout: 2 * time.Second}
	inUse := watchdog.Facts{There: true, Identity: "iTCO_wdt", InUse: true}
	for name, c := range map[string]struct {
		got  Check
		want string // the state, and words of the detail or fix
	}{
		"a recent QEMU":                   {QEMU(recent, []string{"x"}), "good: 10.0.2 at /q"},
		"a QEMU without a capability":     {QEMU(old, []string{"x", "events"}), "bad: 7.2.0 at /q lacks x"},
		"a QEMU without a reconnect":      {QEMU(old, nil), "warn: guests lose their network"},
		"a QEMU without seccomp":          {QEMU(qemu.Abilities{}, nil), "warn: without its sandbox"},
		"KVM":                             {judgeKVM("", virtualisation{extension: "vmx"}), "good: has run 64-bit code"},
		"KVM, and nested too":             {judgeKVM("", virtualisation{nested: true}), "good: nested virtualisation is on"},
		"KVM switched off":                {judgeKVM("no /dev/kvm", virtualisation{}), "warn: in the firmware"},
		"KVM not loaded":                  {judgeKVM("no /dev/kvm", virtualisation{extension: "svm"}), "warn: load kvm_intel or kvm_amd"},
		"KVM, but closed":                 {judgeKVM("x may not open /dev/kvm", virtualisation{extension: "svm"}), "warn: usermod"},
		"a VM itself":                     {judgeKVM("no /dev/kvm", virtualisation{hypervisor: true}), "warn: at its host"},
		"a migration that keeps memory":   {Migration(inventory.Verdict{State: inventory.VerdictGood, Detail: "lost nothing"}, nil), "good: lost nothing"},
		"a migration that loses memory":   {Migration(inventory.Verdict{State: inventory.VerdictBad, Detail: "lost 3 pages"}, nil), "bad: lost 3 pages"},
		"a probe that fails":              {Migration(inventory.Verdict{}, errors.New("no memory")), "bad: could not be made: no memory"},
		"a user":                          {User("godwit-vm", &qemu.User{Name: "godwit-vm"}), "good: run as godwit-vm"},
		"no user":                         {User("godwit-vm", nil), "bad: useradd --system"},
		"no root":                         {User("", nil), "warn: start godwit as root"},
		"cgroups":                         {judgeCgroup(""), "good: one each"},
		"no cgroups":                      {judgeCgroup("no cgroup v2 hierarchy is mounted"), "warn: no cgroup v2"},
		"much memory":                     {judgeSpace(memoryFacts{total: 64 * gib, free: 32 * gib}), "good: 32 GiB of 64 GiB free"},
		"little memory":                   {judgeSpace(memoryFacts{total: 64 * gib, free: 2 * gib}), "warn: move VMs to other hosts"},
		"memory in huge pages":            {judgeSpace(memoryFacts{total: 64 * gib, free: 32 * gib, huge: 16 * gib}), "good: 16 GiB set aside"},
		"memory that is not overcommited": {judgeSpace(memoryFacts{total: 64 * gib, free: 32 * gib, overcommit: "2"}), "warn: sysctl vm.overcommit_memory=0"},
		"no /proc":                        {judgeSpace(memoryFacts{}), "warn: mount /proc"},
		"a kept clock":                    {judgeClock(clockFacts{synchronised: true, maxError: 12 * time.Millisecond}), "good: off by 12ms at most"},
		"a clock on its own":              {judgeClock(clockFacts{}), "warn: install chrony"},
		"a kernel that says nothing":      {judgeClock(clockFacts{err: errors.New("not permitted")}), "warn: timedatectl"},
		"data on a disk":                  {judgeData(ext4), "good: 50 GiB free"},
		"data in memory":                  {judgeData(folderFacts{path: "/tmp", kind: "tmpfs", free: gib}), "bad: would be lost with the next boot"},
		"data on NFS":                     {judgeData(nfs), "warn: the store waits for it"},
		"little room for data":            {judgeData(folderFacts{path: "/", kind: "xfs", free: gib / 2}), "warn: free space there"},
		"no room for data":                {judgeData(folderFacts{path: "/", kind: "xfs", free: gib / 100}), "bad: free space there"},
		"data that cannot be read":        {judgeData(folderFacts{err: errors.New("denied")}), "bad: denied"},
		"run on tmpfs":                    {judgeRun(folderFacts{path: "/run", kind: "tmpfs"}), "good: in memory at /run"},
		"run on a disk":                   {judgeRun(ext4), "warn: not on tmpfs"},
		"run that cannot be read":         {judgeRun(folderFacts{err: errors.New("denied")}), "bad: denied"},
		"many files":                      {judgeFiles(524288), "good: 524288 may be open"},
		"few files":                       {judgeFiles(1024), "warn: enough for 64 VMs"},
		"memory to lock":                  {judgeLock(8<<20, true), "good: may lock"},
		"no memory to lock":               {judgeLock(8<<20, false), "warn: only 8 MiB"},
		"no systemd":                      {judgeService(serviceFacts{}), "warn: systemd does not run"},
		"no unit":                         {judgeService(serviceFacts{systemd: true}), "warn: no unit"},
		"a unit that is off":              {judgeService(serviceFacts{systemd: true, unit: true}), "warn: systemctl enable"},
		"a unit":                          {judgeService(serviceFacts{systemd: true, unit: true, enabled: true}), "good: enabled"},
		"a watchdog":                      {judgeWatchdog(dog), "good: /dev/watchdog (iTCO_wdt): it resets this machine 2s after"},
		"an armed watchdog":               {judgeWatchdog(dogFacts{Facts: inUse, device: dog.device, timeout: dog.timeout, running: true, armed: true}), "good: it resets this machine 2s after"},
		"no watchdog":                     {judgeWatchdog(dogFacts{device: dog.device, timeout: dog.timeout}), "warn: there is no /dev/watchdog: when this host falls silent"},
		"a watchdog switched off":         {judgeWatchdog(dogFacts{timeout: dog.timeout}), "warn: set watchdog-device"},
		"a watchdog without a time":       {judgeWatchdog(dogFacts{Facts: dog.Facts, device: dog.device}), "warn: authority.watchdog"},
		"somebody else's watchdog":        {judgeWatchdog(dogFacts{Facts: inUse, device: dog.device, timeout: dog.timeout}), "warn: RuntimeWatchdogSec="},
		"a watchdog that was not armed":   {judgeWatchdog(dogFacts{Facts: dog.Facts, device: dog.device, timeout: dog.timeout, running: true}), "warn: the log of godwit run"},
		"a watchdog without a way out":    {judgeWatchdog(dogFacts{Facts: watchdog.Facts{There: true, Fixed: true, Fired: true}, device: dog.device, timeout: dog.timeout}), "warn: the machine's last reset"},
		"no nft":                          {judgeFirewall(firewallFacts{why: "nft is not installed"}), "good: not looked at"},
		"no firewall":                     {judgeFirewall(firewallFacts{known: true}), "good: no chain drops"},
		"a firewall":                      {judgeFirewall(firewallFacts{known: true, drops: []string{"input (inet filter)"}}), "warn: accept TCP 7443 and 7444"},
		"a firewall before bridges":       {judgeFirewall(firewallFacts{known: true, drops: []string{"forward (ip filter)"}, bridged: true}), "warn: bridge-nf-call-iptables=0"},
		"a datastore on NFS":              {judgeStore(storeFacts{Folder: shared, folderFacts: nfs}), "good: shared: 50 GiB of 100 GiB free on nfs"},
		"one that only one host has":      {judgeStore(storeFacts{Folder: shared, folderFacts: ext4}), "warn: it counts as shared"},
		"a local one":                     {judgeStore(storeFacts{Folder: Folder{Path: "/vms"}, folderFacts: ext4}), "good: /vms: 50 GiB"},
		"one that is nearly full":         {judgeStore(storeFacts{Folder: shared, folderFacts: folderFacts{kind: "nfs", free: gib, total: 100 * gib}}), "warn: delete or move images"},
		"one in memory":                   {judgeStore(storeFacts{Folder: shared, folderFacts: folderFacts{kind: "tmpfs", free: gib, total: gib}}), "warn: lost with the next boot"},
		"one that hangs":                  {judgeStore(storeFacts{Folder: shared, slow: true}), "bad: no answer within 5s"},
		"one that is not mounted":         {judgeStore(storeFacts{Folder: shared, marker: os.ErrNotExist}), "bad: mount it again"},
		"one without O_DIRECT":            {judgeStore(storeFacts{Folder: shared, folderFacts: nfs, direct: errors.New("invalid")}), "bad: cannot be opened with O_DIRECT"},
		"one without locks":               {judgeStore(storeFacts{Folder: shared, folderFacts: nfs, lock: errors.New("two")}), "bad: without nolock"},
		"a fresh certificate":             {Certificate(now.AddDate(1, 0, 0), now), "good: valid until 2027-11-22"},
		"a certificate that ends":         {Certificate(now.AddDate(0, 0, 29), now), "warn: it ends on 2026-12-21"},
		"a certificate that has ended":    {Certificate(now.AddDate(0, 0, -1), now), "bad: other hosts refuse"},
		"one processor":                   {CPU("Westmere", "Westmere", 1), "good: is Westmere"},
		"like processors":                 {CPU("Westmere", "Westmere", 3), "good: all 3 hosts have it"},
		"a better processor":              {CPU("Haswell", "Westmere", 3), "good: new VMs get Westmere"},
		"Intel and AMD":                   {CPU("Haswell", "", 2), "warn: one vendor"},
		"no model at all":                 {CPU("", "", 1), "bad: no CPU model"},
		"all ports":                       {Reach(nil, 5), "good: 5 ports"},
		"a silent port":                   {Reach([]string{"host-2's agent (192.0.2.12:7443)"}, 4), "warn: no answer from host-2's agent"},
	} {
		state, said, _ := strings.Cut(c.want, ": ")
		if c.got.State != state || !strings.Contains(c.got.Detail+" -> "+c.got.Fix, said) {
			t.Errorf("%s: %+v, want %s", name, c.got, c.want)
		}
		if c.got.State != Good && c.got.Fix == "" || c.got.State == Good && c.got.Fix != "" || c.got.Name == "" || c.got.Detail == "" {
			t.Errorf("%s: %+v has a fix where there is nothing to mend, or none where there is", name, c.got)
		}
	}
}

func TestThisMachineIsExamined(t *testing.T) {
	store := t.TempDir()
	if err := os.WriteFile(filepath.Join(store, markerFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	checks := Machine(t.Context(), Config{
		Data: filepath.Join(store, "is", "not", "there", "yet"), Run: "/dev/shm", Running: true,
		Datastores: []Folder{{Name: "a", Path: store}, {Name: "b", Path: filepath.Join(store, "missing")}},
	})
	var names []string
	for _, c := range checks {
		names = append(names, c.Name)
		if !slices.Contains([]string{Good, Warn, Bad}, c.State) || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	want := []string{"memory", "clock", "data", "run", "files", "mlock", "service", "watchdog", "firewall", "datastore", "datastore"}
	if !slices.Equal(names, want) {
		t.Errorf("checks %q, want %q", names, want)
	}
	if last := checks[len(checks)-1]; last.State != Bad || !strings.HasPrefix(last.Detail, "b: ") {
		t.Errorf("a datastore that is not there: %+v", last)
	}
	if left, err := filepath.Glob(filepath.Join(store, ".godwit-doctor-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestAStoreIsTriedForReal(t *testing.T) {
	direct, lock := tryFile(filepath.Join(t.TempDir(), "file"))
	if direct != nil || lock != nil {
		t.Errorf("this file system has neither O_DIRECT nor locks, and Godwit's other tests run on it: %v, %v", direct, lock)
	}
	if direct, _ := tryFile("/proc/self/file"); direct == nil {
		t.Error("a file in /proc was made")
	}
	if f := readFolder("/proc/self"); f.err != nil || f.kind != "" {
		t.Errorf("/proc is taken for %+v", f)
	}
	if f := readFolder("/dev/shm"); f.kind != "tmpfs" {
		t.Errorf("/dev/shm is taken for %+v", f)
	}
}

// nft's own words, cut down: a chain that is not a base chain has no hook, and one that accepts is no trouble.
func TestPacketFilterAsNftTellsIt(t *testing.T) {
	const said = `{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
{"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
{"chain": {"family": "inet", "table": "filter", "name": "output", "handle": 2, "type": "filter", "hook": "output", "prio": 0, "policy": "drop"}},
{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 3, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
{"chain": {"family": "ip", "table": "nat", "name": "DOCKER", "handle": 4}},
{"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 5, "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}}]}`
	f := parseChains([]byte(said))
	if !f.known || !slices.Equal(f.drops, []string{"input (inet filter)", "forward (ip filter)"}) {
		t.Errorf("%+v", f)
	}
	if f := parseChains([]byte("Error: syntax")); f.known || f.why == "" {
		t.Errorf("%+v", f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f := readFirewall(ctx); f.known || f.why == "" {
		t.Errorf("asked for nothing, it says %+v", f)
	}
}

// A root of files stands in for machines that this one is not.
func TestFactsAreReadWhereTheKernelHasThem(t *testing.T) {
	root := t.TempDir() + "/"
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if v := readVirtualisation(root); v != (virtualisation{}) {
		t.Errorf("nothing is read as %+v", v)
	}
	put("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx sse hypervisor\n\nprocessor\t: 1\nflags\t\t: svm\n")
	put("sys/module/kvm_intel/parameters/nested", "Y\n")
	if v := readVirtualisation(root); v != (virtualisation{extension: "vmx", hypervisor: true, nested: true}) {
		t.Errorf("%+v", v)
	}
	put("sys/module/kvm_intel/parameters/nested", "N\n")
	if v := readVirtualisation(root); v.nested {
		t.Errorf("%+v", v)
	}
	put("run/systemd/system/x", "")
	put("etc/systemd/system/godwit.service", "")
	if f := readService(root); f != (serviceFacts{systemd: true, unit: true}) {
		t.Errorf("%+v", f)
	}
	put("etc/systemd/system/multi-user.target.wants/godwit.service", "")
	if f := readService(root); !f.enabled {
		t.Errorf("%+v", f)
	}
	put("dev/watchdog0", "")
	if f := readWatchdog(root, Config{Watchdog: "/dev/watchdog0"}); !f.There || f.device != "/dev/watchdog0" {
		t.Errorf("%+v", f)
	}
}

func TestArbiters(t *testing.T) {
	got := Arbiters([]Arbiter{
		{Name: "shared", Arbiter: inventory.LeaseArbitrates, Why: "ext4: nothing is known"}, {Name: "nas", Arbiter: inventory.StorageArbitrates, Why: "NFS 4.2"},
	})
	if want := "nas: vms run on while the store is away (NFS 4.2); shared: vms stop while the store is away (ext4: nothing is known)"; got.Detail != want || got.State != Good {
		t.Errorf("%+v", got)
	}
	if none := Arbiters(nil); none.State != Good || none.Detail == "" {
		t.Errorf("%+v", none)
	}
}
