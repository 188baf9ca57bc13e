package config

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// countMax bounds every number in the file: no host has use for more.
const countMax = 1 << 20

// durationMin and durationMax bound every time in the file.
const (
	durationMin = 100 * time.Millisecond
	durationMax = time.Hour
)

func folder(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, text string) error {
		if !filepath.IsAbs(text) {
			return fmt.Errorf("%q is no absolute path", text)
		}
		*field(c) = filepath.Clean(text)
		return nil
	}
}

func optionalPath(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, text string) error {
		if text == "" {
			*field(c) = ""
			return nil
		}
		if strings.Contains(text, "/") {
			return folder(field)(c, text)
		}
		return word(field)(c, text) // to be found in PATH
	}
}

// watchdog takes a device, or unix: and the path of a socket, which clusters that only play at being machines use.
func watchdog(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, text string) error {
		path, _ := strings.CutPrefix(text, "unix:")
		if text != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%q is no absolute path of a watchdog device, like /dev/watchdog1", text)
		}
		*field(c) = text
		return nil
	}
}

func word(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, text string) error {
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == ':' || r == '/' || r == 0x7f }) {
			return fmt.Errorf("%q is no name", text)
		}
		*field(c) = text
		return nil
	}
}

func oneOf(field func(*Config) *string, words ...string) func(*Config, string) error {
	return func(c *Config, text string) error {
		if !slices.Contains(words, text) {
			return fmt.Errorf("%q is none of %s", text, strings.Join(words, ", "))
		}
		*field(c) = text
		return nil
	}
}

// levelNames are the levels of log/slog as people write them.
var levelNames = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

func level(set func(*Config, slog.Level)) func(*Config, string) error {
	return func(c *Config, text string) error {
		l, ok := levelNames[text]
		if !ok {
			return fmt.Errorf("%q is no log level: debug, info, warn or error", text)
		}
		set(c, l)
		return nil
	}
}

// levels are the settings of the table [log-levels]. Empty means that log-level counts.
func levels() []Setting {
	var all []Setting
	for _, component := range Components() {
		set := level(func(c *Config, l slog.Level) { c.LogLevels[component] = l })
		all = append(all, Setting{
			Key: "log-levels." + component, Usage: "the same for the " + component + " alone; empty: log-level counts",
			set: func(c *Config, text string) error {
				if text == "" {
					delete(c.LogLevels, component)
					return nil
				}
				return set(c, text)
			},
		})
	}
	return all
}

func count(key string, value int, usage string, field func(*Config) *int) Setting {
	return countTo(countMax, key, value, usage, field)
}

func countTo(most int, key string, value int, usage string, field func(*Config) *int) Setting {
	return Setting{Key: key, Default: strconv.Itoa(value), Usage: usage, number: true, set: func(c *Config, text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > most {
			return fmt.Errorf("%q is no number from 1 to %d", text, most)
		}
		*field(c) = n
		return nil
	}}
}

func bytes(key, value, usage string, least, most inventory.Bytes, field func(*Config) *inventory.Bytes) Setting {
	return Setting{Key: key, Default: value, Usage: usage, set: func(c *Config, text string) error {
		b, err := inventory.ParseBytes(text)
		if err != nil {
			return err
		}
		if b < least || b > most {
			return fmt.Errorf("%q is not between %v and %v", text, least, most)
		}
		*field(c) = b
		return nil
	}}
}

func duration(key, value, usage string, field func(*Config) *time.Duration) Setting {
	return durationFrom(durationMin, key, value, usage, field)
}

func durationFrom(least time.Duration, key, value, usage string, field func(*Config) *time.Duration) Setting {
	return Setting{Key: key, Default: value, Usage: usage, set: func(c *Config, text string) error {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is no time: write it as 500ms, 10s or 2m", text)
		}
		if d < least || d > durationMax {
			return fmt.Errorf("%q is not between %v and %v", text, least, durationMax)
		}
		*field(c) = d
		return nil
	}}
}

// together finds what is wrong with settings that are each right.
func together(c *Config) []error {
	var bad []error
	l := c.Limits
	for _, pair := range []struct {
		small, big string
		a, b       int
	}{
		{"limits.connections-per-user", "limits.connections", l.ConnectionsPerUser, l.Connections},
		{"limits.handshakes-per-address", "limits.handshakes", l.HandshakesPerAddress, l.Handshakes},
		{"limits.streams", "limits.calls", l.Streams, l.Calls},
		{"limits.calls-per-second", "limits.calls-burst", l.CallsPerSecond, l.CallsBurst},
	} {
		if pair.a > pair.b {
			bad = append(bad, fmt.Errorf("%s is %d and %s only %d: raise this or lower that", pair.small, pair.a, pair.big, pair.b))
		}
	}
	if c.Data == c.Run {
		bad = append(bad, errors.New("data and run are one folder: run is emptied by a reboot, data must not be"))
	}
	return bad
}
