//go:build race

package sim

// raced says that the tests run under the race detector, which makes a run ten times longer and has nothing to find in one goroutine.
const raced = true
