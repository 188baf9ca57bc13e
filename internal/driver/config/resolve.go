package config

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Input is what a configuration is made from.
type Input struct {
	File  string  // path of the file
	Must  bool    // the file was named by somebody and has to be there
	Given []Value // flags and variables, each with Key, Text, From and Where; the last of a key counts
	// Fit lists what is wrong with settings that are each right, by rules that this package does not know; nil: nothing is asked.
	Fit func(*Config) []string
}

// Resolve returns the configuration, or an error of kind fault.Invalid with every problem there is: unknown keys, values that
// cannot be, settings that do not fit together. It does not look whether folders, users and links are there: Check does.
func Resolve(in Input) (*Config, error) {
	c, bad := resolve(in)
	if len(bad) > 0 {
		return nil, fault.Refuse(fault.Invalid, texts(bad))
	}
	return c, nil
}

func resolve(in Input) (*Config, []error) {
	c := &Config{LogLevels: map[string]slog.Level{}, Networks: map[string]Network{}, values: map[string]Value{}}
	var bad []error
	note := func(err error) {
		if err != nil {
			bad = append(bad, err)
		}
	}
	for _, s := range settings {
		note(c.put(s, s.Default, Default, ""))
	}
	if in.File != "" {
		bad = append(bad, c.layer(in.File, in.Must)...)
	}
	for _, v := range in.Given {
		if s, ok := lookup(v.Key); ok {
			if err := c.put(s, v.Text, v.From, v.Where); err != nil {
				bad = append(bad, problem{file: v.Where, err: errors.Unwrap(err)}) // the flag says the key
			}
		}
	}
	if len(bad) == 0 {
		bad = together(c)
		if in.Fit != nil {
			for _, text := range in.Fit(c) {
				bad = append(bad, errors.New(text))
			}
		}
	}
	return c, bad
}

// Under returns the configuration with values that count where nothing but a default was there: what init and join were told.
// Values with an unknown key or an empty text are left out.
func (c *Config) Under(values []Value) (*Config, error) {
	under := *c
	under.values, under.order, under.LogLevels = maps.Clone(c.values), slices.Clone(c.order), maps.Clone(c.LogLevels)
	var bad []error
	for _, v := range values {
		s, ok := lookup(v.Key)
		if !ok || v.Text == "" || c.values[v.Key].From != Default {
			continue
		}
		if err := under.put(s, v.Text, v.From, v.Where); err != nil {
			bad = append(bad, problem{file: v.Where, err: err})
		}
	}
	return &under, fault.Refuse(fault.Invalid, texts(bad))
}

// put gives a setting its value; the error has the key in front.
func (c *Config) put(s Setting, text string, from From, where string) error {
	if err := s.set(c, text); err != nil {
		return fault.Wrap("", s.Key, err)
	}
	c.remember(Value{Key: s.Key, Text: text, From: from, Where: where})
	return nil
}

func (c *Config) remember(v Value) {
	if _, known := c.values[v.Key]; !known {
		c.order = append(c.order, v.Key)
	}
	c.values[v.Key] = v
}

func texts(all []error) []string {
	var lines []string
	for _, err := range all {
		if line := strings.Join(strings.Fields(err.Error()), " "); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}
