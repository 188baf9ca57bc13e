// Package wire translates between the nouns of internal/inventory and the messages of api/godwit/v1, both ways.
//
// The store keeps and the API speaks the messages; everything between them thinks in inventory's types. Every noun T
// has a pair of functions T and FromT. They are total: a nil message reads as the zero noun, and what a message leaves
// out reads as the zero value. The zero time is left out of the message; times come back in UTC. Empty lists come back
// as nil. Numbers beyond a field's size are cut to its largest value rather than wrapped around.
//
// A message may come from a newer version: names of states and phases that this version does not know read as Unknown
// and PhaseUnknown. The package does no I/O and keeps nothing, so any goroutine may call it.
package wire

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// stamp leaves the zero time out, so that "never" needs no year 1 on the wire.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromStamp(s *timestamppb.Timestamp) time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.AsTime()
}

func span(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func fromSpan(d *durationpb.Duration) time.Duration { return d.AsDuration() }

// narrow cuts n to what the message's field can hold.
func narrow(n int) int32 {
	return int32(min(max(n, math.MinInt32), math.MaxInt32))
}

// each translates a list; an empty one becomes nil, as it does on the wire.
func each[A, B any](list []A, f func(A) B) []B {
	if len(list) == 0 {
		return nil
	}
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}

// texts and ids translate lists of named strings.
func texts[T ~string](list []T) []string {
	return each(list, func(t T) string { return string(t) })
}

func ids[T ~string](list []string) []T {
	return each(list, func(s string) T { return T(s) })
}
