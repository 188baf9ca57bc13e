//go:build !race

package handover

// raced: see race_test.go.
const raced = false
