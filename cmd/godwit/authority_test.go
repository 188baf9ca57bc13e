package main

import (
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// The configuration knows its defaults as texts; they are those of the policy.
func TestAuthorityDefaults(t *testing.T) {
	set, err := config.Resolve(config.Input{Fit: authorityFits})
	if err != nil {
		t.Fatal(err)
	}
	if got := authoritySettings(set); got != authority.Default() {
		t.Errorf("the configuration's defaults are %+v, the policy's %+v", got, authority.Default())
	}
}

// Tests of a cluster go faster than hosts, and a slow disk may want more time: both are taken, with their proportions kept.
func TestAuthorityScales(t *testing.T) {
	for name, times := range map[string]string{
		"five times faster": "200ms 180ms 800ms 1s 2500ms 1s 2600ms 2800ms 12s",
		"without watchdog":  "100ms 90ms 400ms 500ms 1s 0s 1100ms 1200ms 6s",
		"ten times slower":  "10s 9s 40s 50s 75s 20s 80s 85s 10m",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := config.Resolve(config.Input{Given: authorityValues(times), Fit: authorityFits}); err != nil {
				t.Error(err)
			}
		})
	}
}

// What would let two copies run is refused, each with its arithmetic.
func TestAuthorityThatIsUnsafe(t *testing.T) {
	_, err := config.Resolve(config.Input{Given: authorityValues("1s 900ms 2s 2s 4s 2s 4s 4100ms 3s"), Fit: authorityFits})
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{
		"stop-after 2s must be at least 2*renew-every + renew-timeout = 2.9s", "freeze-after 2s must be above stop-after 2s",
		"reset-after 4s must be at least freeze-after + watchdog + 500ms = 4.5s", "lease 4s must be above reset-after 4s",
		"silence 4.1s must be at least 1.05 * lease = 4.2s", "planned-lease 3s must not be below lease 4s",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q:\n%v", want, err)
		}
	}
}

func authorityValues(times string) []config.Value {
	keys := []string{"renew-every", "renew-timeout", "stop-after", "freeze-after", "reset-after", "watchdog", "lease", "silence", "planned-lease"}
	var all []config.Value
	for i, text := range strings.Fields(times) {
		all = append(all, config.Value{Key: "authority." + keys[i], Text: text, From: config.Flag, Where: "--authority-" + keys[i]})
	}
	return all
}
