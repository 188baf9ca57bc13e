//go:build !race

package sim

// raced: see race_test.go.
const raced = false
