package main

import "time"

// clock counts from a request.
type clock struct {
	began  time.Time
	phases []Phase
}

func startClock() *clock { return &clock{began: time.Now()} }

// now returns the milliseconds since the request.
func (c *clock) now() float64 { return milliseconds(time.Since(c.began)) }

// mark notes that something happened and returns when.
func (c *clock) mark(name string) float64 {
	at := c.now()
	c.phases = append(c.phases, Phase{name, at})
	return at
}

// once marks a name unless it was marked last.
func (c *clock) once(name string) {
	if n := len(c.phases); n == 0 || c.phases[n-1].Name != name {
		c.mark(name)
	}
}

// at returns when the first of the names that was seen at all was seen first: a watcher may miss a phase that another one follows at
// once, and then the next one stands in. 0 when none was seen.
func (c *clock) at(names ...string) float64 {
	for _, name := range names {
		for _, p := range c.phases {
			if p.Name == name {
				return p.At
			}
		}
	}
	return 0
}
