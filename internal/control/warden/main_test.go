package warden

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/host"
)

// TestMain lets this binary be a warden's role: "role LOG" beats, writes down its start once it serves, deadlocks on
// SIGUSR1, and on SIGUSR2 wants the role store to run, or not to when it wanted it last; "owner LOG" is an agent with VMs (real_test.go);
// "settle" says where it settles.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "role" {
		roleMain(os.Args[2])
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "owner" {
		ownerMain(os.Args[2])
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "settle" {
		fmt.Println(Settle(context.Background(), "/run/a-b", slog.Default()), readCgroups(host.CgroupMount()).Own)
		return
	}
	os.Exit(m.Run())
}

func roleMain(path string) {
	say := func(text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = fmt.Fprintln(f, text, os.Getpid())
		}
		if err != nil {
			panic(err)
		}
	}
	line, err := Inherited(func() { say("gone"); os.Exit(1) }, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	hang := make(chan os.Signal, 1)
	signal.Notify(hang, syscall.SIGUSR1)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	turn := make(chan os.Signal, 1)
	signal.Notify(turn, syscall.SIGUSR2)
	go func() { // ends with the process
		for on := true; ; on = !on {
			<-turn
			line.Want("store", on)
		}
	}()
	var lock sync.Mutex
	go func() {
		<-hang
		lock.Lock() // and never unlocks
		say("hangs")
	}()
	proofs := 0
	line.Beat(ctx, func(context.Context) error {
		// Only a role that was heard once is silent after silentMax, and the first sign of life has been said when the second is asked for.
		if proofs++; proofs == 2 {
			say("start")
		}
		lock.Lock()
		lock.Unlock() //nolint:staticcheck // the lock is what is wanted
		return nil
	})
	say("end")
}
