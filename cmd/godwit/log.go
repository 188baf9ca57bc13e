package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/config"
)

// newLog logs to standard error, a line an event, with the component that says it. The level may change while it is used.
func newLog(component string, set *config.Config, level *slog.LevelVar) *slog.Logger {
	level.Set(set.Level(component))
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if set.LogFormat == "json" {
		handler = slog.NewJSONHandler(os.Stderr, options)
	}
	log := slog.New(handler).With(slog.String("component", component))
	slog.SetDefault(log) // what libraries say by themselves has our form too
	return log
}

// openLog returns the component's log, whose level is read anew from file and environment at each SIGHUP until ctx ends.
// then, which may be nil, is called after that.
func openLog(ctx context.Context, cmd *cobra.Command, component string, set *config.Config, then func()) *slog.Logger {
	level := new(slog.LevelVar)
	log := newLog(component, set, level)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() { // ends with ctx, and with the process
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
			}
			again, err := settings(cmd)
			if err != nil {
				log.LogAttrs(ctx, slog.LevelError, "configuration not read anew, the former one counts", slog.Any("err", err))
			} else {
				level.Set(again.Level(component))
				log.LogAttrs(ctx, slog.LevelInfo, "log level read anew", slog.String("level", again.Level(component).String()))
			}
			if then != nil {
				then()
			}
		}
	}()
	return log
}
