package split

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// verb is what a client asks of a VM's record.
type verb string

const (
	create  verb = "create"
	destroy verb = "destroy"
	set     verb = "set"
	start   verb = "start"
	stop    verb = "stop"
	get     verb = "get"
)

// outcome is what a client learned.
type outcome string

const (
	done    outcome = "done"
	exists  outcome = "exists"  // there is one of that name
	missing outcome = "missing" // there is none
	refused outcome = "refused" // and nothing was changed, for a reason that is not in the record
	unknown outcome = "unknown" // it may have been done, or be done still
)

// record is a VM as far as clients change it; the zero record is a VM that is not there.
type record struct {
	There  bool
	Memory int64
	On     bool
}

// call is one call of a client.
type call struct {
	Verb   verb
	VM     string
	Memory int64 // of create and set
	Host   string
}

// answer is how it ended.
type answer struct {
	Outcome outcome
	Record  record // of get
	Text    string // of an error
}

// history is what clients did, in their own order. It may be used by many goroutines.
type history struct {
	begin time.Time
	mu    sync.Mutex
	calls []porcupine.Operation
}

// do notes a call around its execution.
func (h *history) do(client int, c call, execute func() answer) answer {
	at := time.Since(h.begin)
	a := execute()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, porcupine.Operation{ClientId: client, Input: c, Call: int64(at), Output: a, Return: int64(time.Since(h.begin))})
	return a
}

// after lists the records that a call may leave of the one it finds, if it may be answered so at all.
func after(r record, c call, a answer) []record {
	if a.Outcome == refused {
		return []record{r}
	}
	var then record // after success
	var legal bool  // success is possible
	switch c.Verb {
	case create:
		if a.Outcome == exists {
			return when(r.There, r)
		}
		then, legal = record{There: true, Memory: c.Memory}, !r.There
	case destroy:
		then, legal = record{}, r.There && !r.On
	case set:
		then, legal = record{true, c.Memory, r.On}, r.There
	case start:
		then, legal = record{true, r.Memory, true}, r.There
	case stop:
		then, legal = record{true, r.Memory, false}, r.There
	case get:
		then, legal = r, r.There
		if a.Outcome == done && a.Record != r {
			return nil
		}
	}
	switch a.Outcome {
	case done:
		return when(legal, then)
	case missing:
		return when(!r.There, r)
	case unknown:
		return append(when(legal, then), r)
	case exists, refused:
	}
	return nil
}

func when(so bool, r record) []record {
	if so {
		return []record{r}
	}
	return nil
}

// model is a VM's record as porcupine knows it: calls about different VMs have nothing to do with one another.
var model = porcupine.NondeterministicModel{
	Partition: func(calls []porcupine.Operation) [][]porcupine.Operation {
		byVM := map[string][]porcupine.Operation{}
		for _, c := range calls {
			vm := c.Input.(call).VM
			byVM[vm] = append(byVM[vm], c)
		}
		var all [][]porcupine.Operation
		for _, calls := range byVM {
			all = append(all, calls)
		}
		return all
	},
	Init: func() []any { return []any{record{}} },
	Step: func(state, input, output any) []any {
		var all []any
		for _, r := range after(state.(record), input.(call), output.(answer)) {
			all = append(all, r)
		}
		return all
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		c, a := input.(call), output.(answer)
		return fmt.Sprintf("%s %s %d by %s: %s %+v %s", c.Verb, c.VM, c.Memory>>20, c.Host, a.Outcome, a.Record, a.Text)
	},
}

// judgeMax bounds the search for an order. A history for which it does not end is not proved, and that fails.
const judgeMax = 60 * time.Second

// done returns how many calls are known to have been done.
func (h *history) done() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.calls {
		if c.Output.(answer).Outcome == done {
			n++
		}
	}
	return n
}

// judge says whether the calls have an order in which each took effect once, between its beginning and its end. What may have been done may be done
// at any time after. It returns the calls about the VM for which there is none.
func (h *history) judge() (verdict string, calls int, bad []string) {
	h.mu.Lock()
	all := slices.Clone(h.calls)
	h.mu.Unlock()
	calls = len(all)
	end := int64(time.Since(h.begin))
	for i, c := range all {
		a := c.Output.(answer)
		if a.Outcome == unknown {
			all[i].Return = end
		}
		if c.Input.(call).Verb == start && (a.Outcome == unknown || a.Outcome == exists) {
			// A start that fails has switched the VM on, and off again: two effects, and others may see what is between them.
			a.Outcome = unknown
			all[i].Output = a
			off := all[i]
			in := off.Input.(call)
			in.Verb = stop
			off.Input = in
			all = append(all, off)
		}
	}
	verdict = "linearizable"
	for _, part := range model.Partition(all) {
		switch porcupine.CheckOperationsTimeout(model.ToModel(), part, judgeMax) {
		case porcupine.Ok:
			continue
		case porcupine.Unknown:
			verdict = "not proved in time"
		case porcupine.Illegal:
			verdict = "not linearizable"
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, c := range part {
			bad = append(bad, fmt.Sprintf("%9.3fs to %9.3fs client %d: %s", time.Duration(c.Call).Seconds(), time.Duration(c.Return).Seconds(),
				c.ClientId, model.DescribeOperation(c.Input, c.Output)))
		}
	}
	return verdict, calls, bad
}
