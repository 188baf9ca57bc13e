package split

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// past is a history of calls about one VM, each with its beginning and end.
func past(calls ...porcupine.Operation) *history {
	return &history{begin: time.Now().Add(-time.Minute), calls: calls}
}

func at(from, to time.Duration, c call, a answer) porcupine.Operation {
	return porcupine.Operation{ClientId: int(from), Input: c, Call: int64(from), Output: a, Return: int64(to)}
}

func TestTheJudgeOfHistoriesFindsWhatHasNoOrder(t *testing.T) {
	const small, large = 32 << 20, 64 << 20
	made := at(0, 1, call{Verb: create, VM: "a", Memory: small}, answer{Outcome: done})
	read := func(from, to time.Duration, memory int64, on bool) porcupine.Operation {
		return at(from, to, call{Verb: get, VM: "a"}, answer{Outcome: done, Record: record{true, memory, on}})
	}
	grow := func(from, to time.Duration, o outcome) porcupine.Operation {
		return at(from, to, call{Verb: set, VM: "a", Memory: large}, answer{Outcome: o})
	}
	does := func(from, to time.Duration, v verb, o outcome) porcupine.Operation {
		return at(from, to, call{Verb: v, VM: "a"}, answer{Outcome: o})
	}
	for name, c := range map[string]struct {
		want  string
		calls []porcupine.Operation
	}{
		"one after the other":              {"linearizable", []porcupine.Operation{made, grow(2, 3, done), read(4, 5, large, false)}},
		"a read at the same time":          {"linearizable", []porcupine.Operation{made, grow(2, 9, done), read(3, 4, small, false), read(5, 6, large, false)}},
		"nobody knows, and it was":         {"linearizable", []porcupine.Operation{made, grow(2, 3, unknown), read(4, 5, small, false), read(6, 7, large, false)}},
		"nobody knows, and it was not":     {"linearizable", []porcupine.Operation{made, grow(2, 3, unknown), read(4, 5, small, false)}},
		"gone and made again":              {"linearizable", []porcupine.Operation{made, does(2, 3, destroy, done), does(4, 5, get, missing), at(6, 7, made.Input.(call), answer{Outcome: done})}},
		"on and off":                       {"linearizable", []porcupine.Operation{made, does(2, 3, start, done), read(4, 5, small, true), does(6, 7, stop, done), read(8, 9, small, false)}},
		"a start that failed":              {"linearizable", []porcupine.Operation{made, does(2, 9, start, exists), read(3, 4, small, true), read(5, 6, small, false)}},
		"a change that is lost":            {"not linearizable", []porcupine.Operation{made, grow(2, 3, done), read(4, 5, small, false)}},
		"a read that goes back":            {"not linearizable", []porcupine.Operation{made, grow(2, 9, done), read(3, 4, large, false), read(5, 6, small, false)}},
		"refused, and done all the same":   {"not linearizable", []porcupine.Operation{made, grow(2, 3, refused), read(4, 5, large, false)}},
		"made twice":                       {"not linearizable", []porcupine.Operation{made, at(2, 3, made.Input.(call), answer{Outcome: done})}},
		"there, and nobody made it":        {"not linearizable", []porcupine.Operation{does(2, 3, set, done)}},
		"exists, and nobody made it":       {"not linearizable", []porcupine.Operation{does(2, 3, create, exists)}},
		"missing, and nobody destroyed it": {"not linearizable", []porcupine.Operation{made, does(2, 3, get, missing)}},
		"switched on by nobody":            {"not linearizable", []porcupine.Operation{made, read(4, 5, small, true)}},
		"an acknowledged start is undone":  {"not linearizable", []porcupine.Operation{made, does(2, 3, start, done), read(4, 5, small, false)}},
		"destroyed while it was on":        {"not linearizable", []porcupine.Operation{made, does(2, 3, start, done), does(4, 5, destroy, done)}},
	} {
		verdict, calls, bad := past(c.calls...).judge()
		if verdict != c.want || calls != len(c.calls) || (bad == nil) != (c.want == "linearizable") {
			t.Errorf("%s: it is %s, of %d calls: %q", name, verdict, calls, bad)
		}
	}
}
