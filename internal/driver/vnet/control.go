package vnet

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

const (
	requestMax    = 16 << 20
	shutdownGrace = time.Second
)

// serveControl answers on the control socket until ctx ends.
func (s *Switch) serveControl(ctx context.Context) error {
	if err := os.Remove(s.cfg.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Denied, "switch: old control socket: %w", err) // the lock says that nobody serves it
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", s.cfg.Control)
	if err != nil {
		return fault.New(fault.Invalid, "switch: control socket: %w", err)
	}
	if err := os.Chmod(s.cfg.Control, 0o600); err != nil {
		_ = l.Close() // the error that matters is err
		return fault.New(fault.Denied, "switch: control socket: %w", err)
	}
	server := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if err := server.Shutdown(grace); err != nil {
			_ = server.Close() // a caller that hangs is cut off
		}
	})
	close(s.ready)
	s.changed()
	err = server.Serve(l)
	if stop() {
		return fault.New(fault.Internal, "switch: control socket: %w", err)
	}
	<-stopped
	return nil
}

// handler maps operations to methods.
func (s *Switch) handler() http.Handler {
	mux := http.NewServeMux()
	handle(mux, "add-port", func(ctx context.Context, r PortSpec) (empty, error) { return empty{}, s.AddPort(ctx, r) })
	handle(mux, "remove-port", func(ctx context.Context, r portRequest) (empty, error) { return empty{}, s.RemovePort(ctx, r.ID) })
	handle(mux, "reserve", func(ctx context.Context, r reserveRequest) (empty, error) {
		return empty{}, s.Reserve(ctx, r.Spec, r.Migration, r.Source)
	})
	handle(mux, "hold", func(ctx context.Context, r portRequest) (empty, error) { return empty{}, s.Hold(ctx, r.ID, r.Drain) })
	handle(mux, "unhold", func(ctx context.Context, r portRequest) (empty, error) { return empty{}, s.Unhold(ctx, r.ID) })
	handle(mux, "forward", func(ctx context.Context, r portRequest) (empty, error) {
		return empty{}, s.Forward(ctx, r.ID, r.Host, r.Migration, r.Again)
	})
	handle(mux, "track", func(ctx context.Context, r trackRequest) (empty, error) {
		return empty{}, s.Track(ctx, r.ID, r.Filter)
	})
	handle(mux, "tracked", func(_ context.Context, r portRequest) (trackAnswer, error) {
		n, err := s.Tracked(r.ID)
		return trackAnswer{Written: n}, err
	})
	handle(mux, "abort", func(ctx context.Context, r portRequest) (empty, error) {
		return empty{}, s.Abort(ctx, r.ID, r.Migration)
	})
	handle(mux, "commit", func(ctx context.Context, r portRequest) (empty, error) {
		return empty{}, s.Commit(ctx, r.ID, r.Migration)
	})
	handle(mux, "open", func(ctx context.Context, r portRequest) (empty, error) {
		return empty{}, s.Open(ctx, r.ID, r.Migration)
	})
	handle(mux, "discard", func(ctx context.Context, r portRequest) (empty, error) {
		return empty{}, s.Discard(ctx, r.ID, r.Migration)
	})
	handle(mux, "set-networks", func(ctx context.Context, r []NetworkSpec) (empty, error) { return empty{}, s.SetNetworks(ctx, r) })
	handle(mux, "set-peers", func(ctx context.Context, r []Peer) (empty, error) { return empty{}, s.SetPeers(ctx, r) })
	handle(mux, "status", func(ctx context.Context, _ empty) (Status, error) { return s.Status(ctx) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, problem{fault.Invalid.String(), "no operation " + r.URL.Path + ": switch and agent differ in version"})
	})
	return mux
}

// handle serves one operation: JSON in, JSON out, a problem with its kind otherwise.
func handle[In, Out any](mux *http.ServeMux, op string, do func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST /v1/"+op, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestMax)).Decode(&in); err != nil {
			answer(w, http.StatusBadRequest, problem{fault.Invalid.String(), op + ": request is no JSON: " + err.Error()})
			return
		}
		out, err := do(r.Context(), in)
		if err != nil {
			answer(w, http.StatusConflict, problem{fault.KindOf(err).String(), err.Error()})
			return
		}
		answer(w, http.StatusOK, out)
	})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		slog.Debug("control answer not delivered", slog.Any("err", err)) // the caller has gone, and repeats
	}
}
