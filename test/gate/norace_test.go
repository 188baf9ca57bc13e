//go:build !race

package gate

// raceBuild are the flags with which godwit is built for tests that run without the race detector.
var raceBuild []string
