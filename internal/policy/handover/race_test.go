//go:build race

package handover

// raced says that the tests run under the race detector, which makes the long walk three times longer and has nothing to find in it.
const raced = true
