// Package config is a host's configuration: what the sysadmin decides, as opposed to what Godwit remembers (host.json and the
// rest of the data folder are state; "godwit init" and "join" write them, nobody edits them).
//
// A setting has one key everywhere. "limits.calls" is the key calls in the table [limits] of the file, the flag --limits-calls of
// "godwit run", and the variable GODWIT_LIMITS_CALLS. The first that is given counts:
//
//	flag > environment > file (/etc/godwit/config.toml, TOML 1.0) > what init or join were told > default
//
// Nothing here is a secret, and nothing secret belongs here: "config show" and the support bundle print all of it. The package
// reads files and asks the system about users, groups and links; it starts nothing and changes nothing.
package config

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// DefaultFile is where the file lies when nobody names another. It may be missing.
const DefaultFile = "/etc/godwit/config.toml"

// Config is the configuration of a host, every setting with a value. It does not change; any goroutine may read it.
type Config struct {
	Data        string // data folder: identity, state, the store's files
	Run         string // run directory, on tmpfs: sockets, journals
	LogFormat   string // "text" or "json"
	LogLevel    slog.Level
	LogLevels   map[string]slog.Level // by component; those without one have LogLevel
	Binary      string                // QEMU; empty: the installed one
	User        string                // that VMs run as when the agent is root; empty: the agent's own
	Cache       string                // results of probes
	StoreQuota  inventory.Bytes       // how large the store's file may become
	SocketGroup string                // whose members may use the agent's socket; empty: nobody's
	// ReplaceAfter is after how long a silence a member of the store is replaced on another host.
	ReplaceAfter time.Duration
	Limits       Limits
	Authority    Authority
	Watchdog     string             // device that resets this machine, or unix:PATH of a socket; empty: none
	Networks     map[string]Network // by name of the network: what carries it on this host

	values map[string]Value
	order  []string // keys of values, as Values lists them
}

// Network is what carries a network of driver bridge on this host. Exactly one of the two is set.
type Network struct {
	Bridge string // name of a Linux bridge that is there
	Uplink string // name of an interface that Godwit puts a bridge of its own over
}

// Limits bound what callers may ask of the agent. Migration streams between hosts and the switch's trunks are not under them.
type Limits struct {
	Connections          int             // on the unix socket at once, all users but root together
	ConnectionsPerUser   int             // of them by one user; root has as many for itself
	ConnectionsPerHost   int             // of another host to the agent's port at once, streams aside
	Handshakes           int             // connections to the agent's port at once that have shown no certificate (yet)
	HandshakesPerAddress int             // of them from one address
	Calls                int             // of one caller at once
	Streams              int             // of them that last: consoles, what follows something
	CallsPerSecond       int             // of one caller, on average
	CallsBurst           int             // that one caller may make at once before the average counts
	JoinsPerMinute       int             // attempts to join, from one address
	RequestSize          inventory.Bytes // of one message to the agent
	HeaderSize           inventory.Bytes // of a call's HTTP header
	HeaderTimeout        time.Duration   // for a call's header to arrive
	RequestTimeout       time.Duration   // for the whole request of a call that does not stream
	IdleTimeout          time.Duration   // after which a connection without a call is closed
}

// Authority says how long this host may run its VMs without word from the store, and how long it waits before it takes those of another
// that is silent. Each time but RenewEvery, RenewTimeout, Silence and Planned counts from the send of the last renewal that the store took. That
// they fit together is policy/authority's to say.
type Authority struct {
	RenewEvery   time.Duration
	RenewTimeout time.Duration
	StopAfter    time.Duration // VMs on lease-arbitrated storage stop
	FreezeAfter  time.Duration // those are frozen, and killed where they did not stop
	ResetAfter   time.Duration // by then the watchdog has reset the machine where that could not be proven
	Watchdog     time.Duration // the watchdog's own time; 0: no watchdog is used
	Lease        time.Duration
	Silence      time.Duration // as leader: a host that was silent for so long may be fenced
	Planned      time.Duration // lease over a planned restart
	MassSilent   int           // percent of the hosts
}

// Components are the parts of Godwit that have a log level of their own in the table [log-levels].
func Components() []string { return []string{"agent", "store", "switch", "warden"} }

// Level returns the log level of a component.
func (c *Config) Level(component string) slog.Level {
	if level, ok := c.LogLevels[component]; ok {
		return level
	}
	return c.LogLevel
}

// From is where a value came from.
type From string

// The sources, strongest first.
const (
	Flag        From = "flag"
	Environment From = "environment"
	File        From = "file"
	Init        From = "init" // what godwit init or join were told, kept in host.json
	Default     From = "default"
)

// Value is a setting as it counts.
type Value struct {
	Key   string `json:"key"`
	Text  string `json:"value"`
	From  From   `json:"from"`
	Where string `json:"where,omitempty"` // the flag, the variable, or file and line
}

// Values lists every setting with its source, in the order of the manual; tables with free names last.
func (c *Config) Values() []Value {
	all := make([]Value, 0, len(c.order))
	for _, key := range c.order {
		all = append(all, c.values[key])
	}
	return all
}

// Value returns one setting; the zero Value for a key that is none.
func (c *Config) Value(key string) Value { return c.values[key] }

// Setting is a key that the program knows: its flag and default are made from it.
type Setting struct {
	Key     string
	Default string
	Usage   string
	set     func(c *Config, text string) error
	number  bool // wants an integer in the file; others want a string
}

// FlagName returns the name of the setting's flag.
func (s Setting) FlagName() string { return FlagName(s.Key) }

// TOML returns the default as it would stand in the file.
func (s Setting) TOML() string {
	if s.number {
		return s.Default
	}
	return strconv.Quote(s.Default)
}

// FlagName returns the name of the flag of a key.
func FlagName(key string) string { return strings.ReplaceAll(key, ".", "-") }

// Settings lists the keys with a fixed name. Besides them there is the table [networks.NAME] with bridge or uplink.
func Settings() []Setting { return slices.Clone(settings) }

var settings = slices.Concat([]Setting{
	{Key: "data", Default: "/var/lib/godwit", Usage: "data folder of the host", set: folder(func(c *Config) *string { return &c.Data })},
	{Key: "run", Default: "/run/godwit", Usage: "folder for sockets and journals, on tmpfs", set: folder(func(c *Config) *string { return &c.Run })},
	{Key: "qemu", Usage: "QEMU binary; empty: the installed one", set: optionalPath(func(c *Config) *string { return &c.Binary })},
	{Key: "user", Default: "godwit-vm", Usage: "unprivileged user that VMs run as when godwit is root", set: word(func(c *Config) *string { return &c.User })},
	{Key: "probe-cache", Default: "/var/cache/godwit", Usage: "folder for results of probes", set: folder(func(c *Config) *string { return &c.Cache })},
	{
		Key: "socket-group", Usage: "group whose members may use the agent's socket as administrators; empty: only root and the agent's own user",
		set: word(func(c *Config) *string { return &c.SocketGroup }),
	},
	bytes("store-quota", "512M", "how large the store's file on this host may become; the same on all hosts that carry the store", 64<<20, 8<<30, func(c *Config) *inventory.Bytes { return &c.StoreQuota }),
	duration("store-replace-after", "10m", "silence after which a member of the store is replaced on another host", func(c *Config) *time.Duration { return &c.ReplaceAfter }),
	{Key: "log-format", Default: "text", Usage: "form of the log on standard error: text or json", set: oneOf(func(c *Config) *string { return &c.LogFormat }, "text", "json")},
	{Key: "log-level", Default: "info", Usage: "what is logged: debug, info, warn or error", set: level(func(c *Config, l slog.Level) { c.LogLevel = l })},
	{
		Key: "watchdog-device", Default: "/dev/watchdog", Usage: "watchdog that resets this machine when VMs may run without authority; empty: none",
		set: watchdog(func(c *Config) *string { return &c.Watchdog }),
	},
}, levels(), []Setting{
	count("limits.connections", 1024, "connections to the agent's socket at once, root's aside", func(c *Config) *int { return &c.Limits.Connections }),
	count("limits.connections-per-user", 256, "connections of one user to the agent's socket at once, and with tokens to its port", func(c *Config) *int { return &c.Limits.ConnectionsPerUser }),
	count("limits.connections-per-host", 64, "connections of one other host at once, migration streams aside", func(c *Config) *int { return &c.Limits.ConnectionsPerHost }),
	count("limits.handshakes", 128, "connections from other machines at once that have shown no certificate yet", func(c *Config) *int { return &c.Limits.Handshakes }),
	count("limits.handshakes-per-address", 32, "the same from one address", func(c *Config) *int { return &c.Limits.HandshakesPerAddress }),
	count("limits.calls", 256, "calls of one caller at once", func(c *Config) *int { return &c.Limits.Calls }),
	count("limits.streams", 64, "consoles and other lasting calls of one caller at once", func(c *Config) *int { return &c.Limits.Streams }),
	count("limits.calls-per-second", 200, "calls of one caller on average; more wait their turn, up to a second", func(c *Config) *int { return &c.Limits.CallsPerSecond }),
	count("limits.calls-burst", 400, "calls that one caller may make at once before the average counts", func(c *Config) *int { return &c.Limits.CallsBurst }),
	count("limits.joins-per-minute", 30, "attempts to join the cluster from one address, and wrong tokens of users from one", func(c *Config) *int { return &c.Limits.JoinsPerMinute }),
	bytes("limits.request-size", "1M", "size of one message to the agent", 64<<10, 64<<20, func(c *Config) *inventory.Bytes { return &c.Limits.RequestSize }),
	bytes("limits.header-size", "32K", "size of the HTTP header of a call", 4<<10, 1<<20, func(c *Config) *inventory.Bytes { return &c.Limits.HeaderSize }),
	duration("limits.header-timeout", "5s", "time for the header of a call to arrive", func(c *Config) *time.Duration { return &c.Limits.HeaderTimeout }),
	duration("limits.request-timeout", "30s", "time for the whole request of a call to arrive, unless it streams", func(c *Config) *time.Duration { return &c.Limits.RequestTimeout }),
	duration("limits.idle-timeout", "2m", "time after which a connection without a call is closed", func(c *Config) *time.Duration { return &c.Limits.IdleTimeout }),

	authority("renew-every", "1s", "pause from one renewal of this host's authority to the next", func(a *Authority) *time.Duration { return &a.RenewEvery }),
	authority("renew-timeout", "900ms", "time after which a renewal without an answer counts as failed", func(a *Authority) *time.Duration { return &a.RenewTimeout }),
	authority("stop-after", "4s", "time without a renewal after which VMs that only the lease arbitrates are stopped", func(a *Authority) *time.Duration { return &a.StopAfter }),
	authority("freeze-after", "5s", "time without a renewal after which they are frozen, or killed where they did not stop", func(a *Authority) *time.Duration { return &a.FreezeAfter }),
	authority("reset-after", "7500ms", "time without a renewal by which the watchdog has reset a machine that could not prove that", func(a *Authority) *time.Duration { return &a.ResetAfter }),
	durationFrom(0, "authority.watchdog", "2s", "time of the watchdog itself, from its last feeding; 0s: use none", func(c *Config) *time.Duration { return &c.Authority.Watchdog }),
	authority("lease", "8s", "time from a renewal's send to the end of this host's authority", func(a *Authority) *time.Duration { return &a.Lease }),
	authority("silence", "8500ms", "time that another host must be silent before this one, as leader, fences it", func(a *Authority) *time.Duration { return &a.Silence }),
	authority("planned-lease", "1m", "lease over a planned restart of this host", func(a *Authority) *time.Duration { return &a.Planned }),
	countTo(100, "authority.mass-silent", 30, "percent of the hosts: when more, and more than one, are silent at once, none is fenced without proof of its own", func(c *Config) *int { return &c.Authority.MassSilent }),
})

// authorityMin bounds the times of authority: tests go a good deal faster than hosts.
const authorityMin = 10 * time.Millisecond

func authority(key, value, usage string, field func(*Authority) *time.Duration) Setting {
	return durationFrom(authorityMin, "authority."+key, value, usage, func(c *Config) *time.Duration { return field(&c.Authority) })
}

// lookup returns the setting of a key.
func lookup(key string) (Setting, bool) {
	i := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == key })
	if i < 0 {
		return Setting{}, false
	}
	return settings[i], true
}

// Socket returns the path of the agent's socket.
func (c *Config) Socket() string { return filepath.Join(c.Run, "agent.sock") }
