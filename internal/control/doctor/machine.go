package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/watchdog"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// memoryFacts is what the kernel says of the machine's memory.
type memoryFacts struct {
	total, free, huge inventory.Bytes // huge: set aside as huge pages
	overcommit        string          // vm.overcommit_memory
}

func readMemory() (m memoryFacts) {
	bytes := func(v *uint64) inventory.Bytes {
		if v == nil {
			return 0
		}
		return inventory.Bytes(*v) //nolint:gosec // no machine has 2^63 bytes
	}
	if all, err := procfs.NewDefaultFS(); err == nil {
		if info, err := all.Meminfo(); err == nil {
			m.total, m.free = bytes(info.MemTotalBytes), bytes(info.MemAvailableBytes)
			if info.HugePagesTotal != nil {
				m.huge = inventory.Bytes(*info.HugePagesTotal) * bytes(info.HugepagesizeBytes) //nolint:gosec // as above
			}
		}
	}
	m.overcommit = line("/proc/sys/vm/overcommit_memory")
	return m
}

// memoryLow is the part of the memory below which what is free is worth a warning.
const memoryLow = 10 // percent

func judgeSpace(m memoryFacts) Check {
	c := Check{Name: "memory", State: Good, Detail: fmt.Sprintf("%v of %v free", m.free, m.total)}
	if m.huge > 0 {
		c.Detail += fmt.Sprintf(", %v set aside as huge pages, which Godwit's VMs do not use", m.huge)
	}
	switch {
	case m.total == 0:
		c.State, c.Detail, c.Fix = Warn, "/proc/meminfo cannot be read", "mount /proc"
	case m.overcommit == "2":
		c.State, c.Fix = Warn, "sysctl vm.overcommit_memory=0"
		c.Detail += "; the kernel promises no more memory than there is (vm.overcommit_memory is 2), and VMs may not start although some is free"
	case m.free*100 < m.total*memoryLow:
		c.State, c.Fix = Warn, "move VMs to other hosts, or add memory"
	}
	return c
}

// clockFacts is how the kernel's clock is kept.
type clockFacts struct {
	synchronised bool
	maxError     time.Duration
	err          error
}

// readClock asks the kernel (adjtimex(2)), whoever keeps its clock: chrony, systemd-timesyncd, ntpd.
func readClock() clockFacts {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return clockFacts{
		synchronised: err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		maxError:     time.Duration(t.Maxerror) * time.Microsecond, err: err,
	}
}

func judgeClock(f clockFacts) Check {
	switch {
	case f.err != nil:
		return Check{Name: "clock", State: Warn, Detail: "the kernel does not say how its clock is kept: " + f.err.Error(), Fix: "check with timedatectl that it is synchronised"}
	case !f.synchronised:
		return Check{
			Name: "clock", State: Warn, Detail: "nothing synchronises it: certificates and the times in records depend on it",
			Fix: "install chrony, or switch systemd-timesyncd on with timedatectl set-ntp true",
		}
	}
	return Check{Name: "clock", State: Good, Detail: fmt.Sprintf("synchronised, off by %v at most", f.maxError.Round(time.Millisecond))}
}

// limits looks at what the agent itself may take; whoever else asks has limits that say nothing of the host's.
func limits(_ context.Context, c Config) []Check {
	if !c.Running {
		return nil
	}
	return []Check{judgeFiles(readLimit(unix.RLIMIT_NOFILE)), judgeLock(readLimit(unix.RLIMIT_MEMLOCK), mayLock())}
}

func readLimit(resource int) uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(resource, &r); err != nil {
		return 0
	}
	return r.Max
}

// filesPerVM is about what the agent and the switch open for one VM each; filesWanted is enough for 500 of them.
const (
	filesPerVM  = 16
	filesWanted = 500 * filesPerVM
)

func judgeFiles(most uint64) Check {
	if most >= filesWanted {
		return Check{Name: "files", State: Good, Detail: fmt.Sprintf("%d may be open at once", most)}
	}
	return Check{
		Name: "files", State: Warn, Detail: fmt.Sprintf("%d may be open at once: enough for %d VMs or so", most, most/filesPerVM),
		Fix: fmt.Sprintf("raise the limit to %d or more (LimitNOFILE= in the unit, ulimit -n in a shell)", filesWanted),
	}
}

// mayLock reports whether this process may lock memory beyond its limit (CAP_IPC_LOCK, capabilities(7)).
func mayLock() bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for l := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(l, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && set&(1<<unix.CAP_IPC_LOCK) != 0
		}
	}
	return false
}

// lockWanted is more than any of Godwit's own processes takes.
const lockWanted = 256 << 20

func judgeLock(most uint64, capable bool) Check {
	if capable || most >= lockWanted {
		return Check{Name: "mlock", State: Good, Detail: "Godwit may lock its memory"}
	}
	return Check{
		Name: "mlock", State: Warn, Detail: fmt.Sprintf("only %v may be locked: Godwit waits when the machine swaps", inventory.Bytes(most)), //nolint:gosec // below lockWanted
		Fix: "LimitMEMLOCK=infinity in the unit, or start godwit as root",
	}
}

// serviceFacts is who starts Godwit when the machine boots.
type serviceFacts struct {
	systemd, unit, enabled bool
}

func readService(root string) serviceFacts {
	there := func(path string) bool { _, err := os.Lstat(root + path); return err == nil }
	return serviceFacts{
		systemd: there("run/systemd/system"), // sd_booted(3)
		unit:    there("etc/systemd/system/godwit.service") || there("lib/systemd/system/godwit.service") || there("usr/lib/systemd/system/godwit.service"),
		enabled: there("etc/systemd/system/multi-user.target.wants/godwit.service"),
	}
}

func judgeService(f serviceFacts) Check {
	switch {
	case !f.systemd:
		return Check{Name: "service", State: Warn, Detail: "systemd does not run this machine: nothing is known of what starts godwit at boot", Fix: "see that godwit run is started at boot, and again when it ends"}
	case !f.unit:
		return Check{Name: "service", State: Warn, Detail: "systemd has no unit godwit.service: nothing starts it at boot", Fix: unitFix}
	case !f.enabled:
		return Check{Name: "service", State: Warn, Detail: "godwit.service is not enabled: nothing starts it at boot", Fix: "systemctl enable godwit.service"}
	}
	return Check{Name: "service", State: Good, Detail: "godwit.service is enabled"}
}

// unitFix says how a host gets its unit.
const unitFix = "godwit install --start writes one and starts it"

// dogFacts is what of a watchdog concerns the host.
type dogFacts struct {
	watchdog.Facts

	device  string        // "": none is wanted
	timeout time.Duration // that is wanted; 0: none is
	running bool          // the host's warden runs, and armed is its word
	armed   bool
}

func readWatchdog(root string, c Config) dogFacts {
	return dogFacts{watchdog.About(root, c.Watchdog), c.Watchdog, c.WatchdogTimeout, c.Running, c.Armed}
}

// judgeWatchdog says whether others can know that this host's VMs are dead when it falls silent.
func judgeWatchdog(f dogFacts) Check {
	without := ": when this host falls silent, its VMs are started elsewhere only after somebody has said godwit host confirm-dead"
	c := Check{Name: "watchdog", State: Warn}
	switch {
	case f.device == "" || f.timeout == 0:
		c.Detail, c.Fix = "none is to be used"+without, "set watchdog-device, and authority.watchdog, which is 2s unless set"
		return c
	case !f.There && !strings.HasPrefix(f.device, "unix:"):
		c.Detail = "there is no " + f.device + without
		c.Fix = "load the board's own driver (iTCO_wdt, sp5100_tco, ipmi_watchdog), or softdog, and name it in /etc/modules-load.d"
		return c
	}
	c.Detail = f.device
	if f.Identity != "" {
		c.Detail += " (" + f.Identity + ")"
	}
	if f.Fired {
		c.Detail += ", which has made the machine's last reset"
	}
	switch {
	case f.InUse && !f.running:
		c.Detail += " is in use by another program" + without
		c.Fix = "switch RuntimeWatchdogSec= of systemd or the watchdog daemon off, or set watchdog-device to another device"
	case f.running && !f.armed:
		c.Detail += " is not armed" + without
		c.Fix = "the log of godwit run says why it could not be armed"
	case f.Fixed:
		c.Detail += " cannot be taken off once it is armed: the machine is reset when godwit is ended and does not come back in time"
		c.Fix = "load its driver without nowayout"
	default:
		c.State = Good
		c.Detail += fmt.Sprintf(": it resets this machine %v after Godwit could not prove any more that its VMs stand still", f.timeout)
	}
	return c
}

// firewallFacts is what of the packet filter concerns other hosts.
type firewallFacts struct {
	known   bool
	why     string
	drops   []string // hooks at which what no rule accepts is dropped
	bridged bool     // frames of bridges go through it, too
}

// nftMax bounds the question to nft.
const nftMax = 2 * time.Second

func readFirewall(ctx context.Context) firewallFacts {
	nft, err := exec.LookPath("nft")
	if err != nil {
		nft = "/usr/sbin/nft"
	}
	within, done := context.WithTimeout(ctx, nftMax)
	defer done()
	out, err := exec.CommandContext(within, nft, "-j", "list", "chains").Output()
	if err != nil {
		why := err.Error()
		if errors.Is(err, fs.ErrNotExist) {
			why = "nft is not installed"
		}
		return firewallFacts{why: why}
	}
	f := parseChains(out)
	f.bridged = line("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1"
	return f
}

// parseChains reads nft -j list chains (libnftables-json(5)).
func parseChains(text []byte) firewallFacts {
	var list struct {
		Items []struct {
			Chain struct {
				Table  string `json:"table"`
				Family string `json:"family"`
				Hook   string `json:"hook"`
				Policy string `json:"policy"`
			} `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return firewallFacts{why: "nft answers what is no JSON: " + err.Error()}
	}
	f := firewallFacts{known: true}
	for _, item := range list.Items {
		c := item.Chain
		if c.Policy == "drop" && (c.Hook == "input" || c.Hook == "forward") {
			f.drops = append(f.drops, fmt.Sprintf("%s (%s %s)", c.Hook, c.Family, c.Table))
		}
	}
	return f
}

func judgeFirewall(f firewallFacts) Check {
	const name = "firewall"
	switch {
	case !f.known:
		return Check{Name: name, State: Good, Detail: "not looked at: " + f.why}
	case len(f.drops) > 0:
		c := Check{
			Name: name, State: Warn, Detail: "drops what no rule accepts at " + join(f.drops),
			Fix: "accept TCP 7443 and 7444 from the other hosts, and 2379 and 2380, since any host may carry a member of the store",
		}
		if f.bridged {
			c.Detail += "; frames on bridges pass through it, too"
			c.Fix += "; sysctl net.bridge.bridge-nf-call-iptables=0 for networks with a bridge"
		}
		return c
	}
	return Check{Name: name, State: Good, Detail: "no chain drops by default"}
}

// line returns the content of a small file without the line's end, "" when there is none.
func line(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
