package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
	"github.com/godwit-vm/godwit/internal/wire"
)

// Bounds of what two agents do for a cold migration.
const (
	moveCallMax  = 30 * time.Second // a call; the target may have to look at large files
	fileStillMax = 30 * time.Second // a connection on which no piece moves is given up
)

// AdmitMove is what a source asks of the target of a cold migration.
type AdmitMove struct {
	Move        string
	VM          inventory.VM // as it is to be
	Source      inventory.HostID
	SourceEpoch uint64
	Files       []MoveFile // that the source wants to send
	Marked      []inventory.DatastoreID
	DryRun      bool
}

// MoveFile is one of them.
type MoveFile struct {
	File inventory.File
	Size inventory.Bytes
	Sum  []byte // SHA-256, for a file that may be there already
}

// coming is a cold migration whose files come to this host.
type coming struct {
	want     AdmitMove
	streams  []*peer.Stream // that have brought or bring its files; of Agent.mu
	received sync.WaitGroup
}

// fileStream is the header of a stream that carries a file.
type fileStream struct {
	Move string         `json:"move"`
	File inventory.File `json:"file"`
}

// fileHeader reads the header of such a stream; that of a memory stream is a migration's id.
func fileHeader(header []byte) (fileStream, bool) {
	var f fileStream
	return f, len(header) > 0 && header[0] == '{' && json.Unmarshal(header, &f) == nil
}

// arrival asks the target, which may be this host, what stands against the move; without dryRun it also makes it ready.
func (a *Agent) arrival(ctx context.Context, m *moving, dryRun bool) ([]string, error) {
	if !m.away(a) {
		return a.checkArrival(ctx, AdmitMove{VM: inventory.VM{ID: m.vm.ID, Spec: m.spec}, Files: a.localFiles(m), DryRun: dryRun})
	}
	req := &godwitv1.AdmitMoveRequest{
		Move: m.op, Vm: wire.VM(inventory.VM{ID: m.vm.ID, Spec: m.spec, Run: m.vm.Run}), Source: string(a.Host()),
		SourceEpoch: a.writer.Epoch(), DryRun: dryRun,
	}
	for _, f := range m.files {
		if !a.local(f) {
			req.Files = append(req.Files, &godwitv1.MoveFile{File: wire.File(f.to), Size: f.size, Sha256: f.sum})
		}
	}
	for _, id := range a.marked(m) {
		req.Marked = append(req.Marked, string(id))
	}
	within, done := context.WithTimeout(ctx, moveCallMax)
	defer done()
	resp, err := a.mover(m.target).AdmitMove(within, connect.NewRequest(req))
	if err != nil {
		return nil, wire.FromFault(err)
	}
	m.epoch = resp.Msg.GetTargetEpoch()
	for _, f := range resp.Msg.GetPresent() {
		m.present = append(m.present, wire.FromFile(f))
	}
	reasons := resp.Msg.GetReasons()
	if dryRun && len(a.localFiles(m)) > 0 { // what this host is to copy itself
		own, err := a.checkSpace(ctx, AdmitMove{Files: a.localFiles(m), DryRun: true})
		if err != nil {
			return nil, err
		}
		reasons = append(reasons, own...)
	}
	return reasons, nil
}

// has reports whether the target has the file already.
func (m *moving) has(f inventory.File) bool { return slices.Contains(m.present, f) }

// localFiles lists the files that this host copies itself.
func (a *Agent) localFiles(m *moving) []MoveFile {
	var all []MoveFile
	for _, f := range m.files {
		if a.local(f) {
			all = append(all, MoveFile{File: f.to, Size: inventory.Bytes(f.size), Sum: f.sum})
		}
	}
	return all
}

func (a *Agent) mover(target inventory.Host) godwitv1connect.MoveServiceClient {
	web := a.Peers.HTTPClient(target.ID, target.Spec.Address)
	return godwitv1connect.NewMoveServiceClient(web, "https://"+target.Spec.Address)
}

// endMove makes the target look into the store for what became of the move.
func (a *Agent) endMove(ctx context.Context, m *moving) error {
	_, err := a.mover(m.target).EndMove(ctx, connect.NewRequest(&godwitv1.EndMoveRequest{
		Move: m.op, Vm: string(m.vm.ID), Source: string(a.Host()),
	}))
	return wire.FromFault(err)
}

// sendFile sends a file to the target and returns when it is whole on the disk there.
func (a *Agent) sendFile(ctx context.Context, m *moving, f movingFile, file *os.File, sent func(int)) error {
	header, err := json.Marshal(fileStream{Move: m.op, File: f.to})
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	conn, err := a.Peers.DialStream(ctx, m.target.ID, m.target.Spec.Address, header)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the answer has said what matters
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = sendPieces(moves{conn}, file, sent)
	if err == nil {
		var answer [1]byte
		if err = conn.SetReadDeadline(time.Now().Add(2 * fileStillMax)); err == nil { // the target's fsync is in it
			_, err = conn.Read(answer[:])
		}
	}
	switch {
	case ctx.Err() != nil:
		return fault.New(fault.Canceled, "%w", ctx.Err())
	case err != nil:
		return fault.New(fault.Unavailable, "host %s did not take it whole: %w: see its log, and run the command again", m.target.ID, err)
	}
	return nil
}

// moves is a connection that is given up when nothing moves on it.
type moves struct{ net.Conn }

// Write implements io.Writer.
func (c moves) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(fileStillMax)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Read implements io.Reader.
func (c moves) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(fileStillMax)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// AdmitMove lists what stands against a cold migration to this host. Without a reason, and unless it is a dry run, the files may
// then come; what an earlier try for the VM left is removed first.
func (a *Agent) AdmitMove(ctx context.Context, want AdmitMove) (reasons []string, present []inventory.File, epoch uint64, err error) {
	if err := a.awaitReady(ctx); err != nil {
		return nil, nil, 0, err
	}
	if err := calledBy(ctx, want.Source); err != nil {
		return nil, nil, 0, err
	}
	source, err := a.Store.Epoch(ctx, want.Source)
	if err != nil {
		return nil, nil, 0, err
	}
	if want.SourceEpoch != source.Epoch {
		return nil, nil, 0, fault.New(fault.Conflict, "host %s was started again since: epoch %d is over", want.Source, want.SourceEpoch)
	}
	if !want.DryRun {
		// The source holds the VM and has burnt a generation: no earlier try can end well any more.
		a.endMoves(ctx, func(c *coming) bool { return c.want.VM.ID == want.VM.ID && c.want.Move != want.Move })
		a.settleVM(ctx, want.VM.ID)
	}
	reasons, err = a.checkArrival(ctx, want)
	if err != nil {
		return nil, nil, 0, err
	}
	byStore := map[inventory.DatastoreID][]string{}
	for _, f := range want.Files {
		if ds := a.stores[f.File.Datastore]; ds != nil && a.isThere(ds, f) {
			present = append(present, f.File)
			continue
		}
		byStore[f.File.Datastore] = append(byStore[f.File.Datastore], f.File.Path)
	}
	if want.DryRun || len(reasons) > 0 {
		return reasons, present, a.writer.Epoch(), nil
	}
	for id, paths := range byStore {
		if err := a.stores[id].Claim(datastore.Claim{
			Host: a.Host(), Op: want.Move, Driver: want.Source, Epoch: want.SourceEpoch, VM: want.VM.ID, Files: paths,
		}); err != nil {
			return nil, nil, 0, err
		}
	}
	c := &coming{want: want}
	a.mu.Lock()
	a.moves[want.Move] = c
	a.mu.Unlock()
	return nil, present, a.writer.Epoch(), nil
}

// isThere reports whether a file that may be there already is, with the same content.
func (a *Agent) isThere(ds *datastore.Datastore, f MoveFile) bool {
	path, err := ds.Resolve(f.File.Path)
	if err != nil || len(f.Sum) == 0 {
		return false
	}
	sum, err := sumOf(path)
	return err == nil && slices.Equal(sum, f.Sum)
}

// checkArrival gathers what admission asks about a VM that is to come here.
func (a *Agent) checkArrival(ctx context.Context, want AdmitMove) ([]string, error) {
	self, err := a.describe(ctx)
	if err != nil {
		return nil, err
	}
	facts := a.arrivalFacts(want)
	facts.Spec, facts.Target = want.VM.Spec, self
	if !want.DryRun {
		for _, id := range want.Marked {
			if ds := a.stores[id]; ds != nil && !ds.Claimed(want.Source, want.Move) {
				facts.Unseen = append(facts.Unseen, id)
			}
		}
	}
	return admission.CheckArrival(facts), nil
}

// checkSpace asks only about files, not about the VM.
func (a *Agent) checkSpace(ctx context.Context, want AdmitMove) ([]string, error) {
	self, err := a.describe(ctx)
	if err != nil {
		return nil, err
	}
	facts := a.arrivalFacts(want)
	facts.Target = self
	return admission.CheckFiles(facts), nil
}

func (a *Agent) arrivalFacts(want AdmitMove) admission.Arrival {
	facts := admission.Arrival{Source: want.Source, Need: map[inventory.DatastoreID]inventory.Bytes{}, Free: map[inventory.DatastoreID]inventory.Bytes{}}
	for _, f := range want.Files {
		ds := a.stores[f.File.Datastore]
		if ds == nil {
			continue // the spec says so too
		}
		if a.isThere(ds, f) {
			continue
		}
		facts.Need[ds.ID] += f.Size
		if free, _, err := ds.Space(); err == nil {
			facts.Free[ds.ID] = free
		} else {
			facts.Free[ds.ID] = facts.Need[ds.ID] // writing will tell
		}
		if _, err := ds.Stat(f.File.Path); err == nil && !a.claimedFor(ds, want.VM.ID, f.File.Path) {
			facts.Taken = append(facts.Taken, f.File)
		}
	}
	return facts
}

// claimedFor reports whether a file is what an earlier try left.
func (a *Agent) claimedFor(ds *datastore.Datastore, vm inventory.VMID, path string) bool {
	claims, err := ds.Claims(a.Host())
	return err == nil && slices.ContainsFunc(claims, func(c datastore.Claim) bool { return c.VM == vm && slices.Contains(c.Files, path) })
}

// receiveFile takes a file of a cold migration that was admitted.
func (a *Agent) receiveFile(ctx context.Context, s *peer.Stream, header fileStream) {
	log := a.Log.With(slog.String("move", header.Move), slog.String("host", string(s.From)), slog.String("file", header.File.Path))
	a.mu.Lock()
	c := a.moves[header.Move]
	known := c != nil && c.want.Source == s.From && slices.ContainsFunc(c.want.Files, func(f MoveFile) bool { return f.File == header.File })
	if known {
		c.received.Add(1)
		c.streams = append(c.streams, s)
	}
	a.mu.Unlock()
	if !known {
		err := s.Refuse(fault.New(fault.Conflict, "file %s is not expected at host %s", header.File.Path, a.Host()))
		log.LogAttrs(ctx, slog.LevelWarn, "file refused", slog.Any("err", err))
		return
	}
	defer c.received.Done()
	if err := a.takeFile(s, header); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "file not received", slog.Any("err", err))
	}
}

func (a *Agent) takeFile(s *peer.Stream, header fileStream) error {
	part, err := a.stores[header.File.Datastore].NewPart(a.Host())
	if err != nil {
		return s.Refuse(err)
	}
	defer part.Discard()
	if err := s.Accept(); err != nil {
		return err
	}
	if err := receivePieces(moves{s.Conn}, part.File); err != nil {
		return err
	}
	if err := a.User.Own(part.Path()); err != nil && !fault.Is(err, fault.Denied) {
		return err
	}
	if err := a.finish(part, header.Move, header.File); err != nil {
		return err
	}
	_, err = moves{s.Conn}.Write([]byte{1})
	return err
}

// EndMove ends a move to this host, however it went: the store says whether the VM is this host's now.
func (a *Agent) EndMove(ctx context.Context, move string, id inventory.VMID, source inventory.HostID) error {
	if err := a.awaitReady(ctx); err != nil {
		return err
	}
	if err := calledBy(ctx, source); err != nil {
		return err
	}
	return a.finishMove(ctx, move, id, source)
}

// calledBy refuses another host than the one that a call speaks for.
func calledBy(ctx context.Context, source inventory.HostID) error {
	if host, ok := peer.HostID(ctx); !ok || host != source {
		return fault.New(fault.Denied, "host %q speaks for host %s", string(host), source)
	}
	return nil
}

func (a *Agent) finishMove(ctx context.Context, move string, id inventory.VMID, source inventory.HostID) error {
	a.endMoves(ctx, func(c *coming) bool { return c.want.Move == move && c.want.Source == source })
	a.settle(ctx, func(c datastore.Claim) bool { return c.Op == move && c.Driver == source })
	err := a.takeIn(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// endMoves takes no more files for the moves, and returns when none is being written.
func (a *Agent) endMoves(ctx context.Context, match func(*coming) bool) {
	var ended []*coming
	a.mu.Lock()
	for op, c := range a.moves {
		if match(c) {
			ended = append(ended, c)
			delete(a.moves, op)
		}
	}
	a.mu.Unlock()
	for _, c := range ended {
		for _, s := range c.streams { // nobody adds one any more
			_ = s.Close() // ended already, or to be given up
		}
		c.received.Wait()
	}
	if len(ended) > 0 {
		a.Log.LogAttrs(ctx, slog.LevelDebug, "moves ended", slog.Int("moves", len(ended)))
	}
}

// settleVM removes what earlier operations left for the VM; none of them can end well any more.
func (a *Agent) settleVM(ctx context.Context, id inventory.VMID) {
	a.settle(ctx, func(c datastore.Claim) bool { return c.VM == id })
}

// orphanedMoves ends the moves whose source was started again: it has forgotten them, and the epoch that could have ended
// them well is over.
func (a *Agent) orphanedMoves(ctx context.Context) error {
	a.mu.Lock()
	var open []*coming
	for _, c := range a.moves {
		open = append(open, c)
	}
	a.mu.Unlock()
	for _, c := range open {
		epoch, err := a.Store.Epoch(ctx, c.want.Source)
		if err != nil {
			return err
		}
		if epoch.Epoch == c.want.SourceEpoch {
			continue
		}
		a.Log.LogAttrs(ctx, slog.LevelInfo, "move given up, its source was started again", slog.String("move", c.want.Move), slog.String("host", string(c.want.Source)))
		if err := a.finishMove(ctx, c.want.Move, c.want.VM.ID, c.want.Source); err != nil {
			return err
		}
	}
	return nil
}
