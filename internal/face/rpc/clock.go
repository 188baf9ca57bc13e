package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/godwit-vm/godwit/internal/fault"
)

// clockSkewMax is how far a new host's clock may be from this one's. Safety needs no clocks that agree; certificates, tokens and people who
// compare logs do.
const clockSkewMax = 5 * time.Minute

// clocksAgree refuses a host whose clock is off, before its token is spent. One that does not say what its clock says is let in.
func clocksAgree(host string, theirs *timestamppb.Timestamp, ours time.Time) error {
	if theirs == nil {
		return nil
	}
	off := theirs.AsTime().Sub(ours)
	if off.Abs() <= clockSkewMax {
		return nil
	}
	where := "ahead of"
	if off < 0 {
		where = "behind"
	}
	return fault.New(fault.Denied, "join host %s: its clock is %v %s this host's: set both, as by NTP, and join again with the same token",
		host, off.Abs().Round(time.Minute), where)
}
