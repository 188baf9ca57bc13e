package store

import (
	"context"
	"encoding/json"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// dumped is one record of a dump. Raw holds what this version cannot read.
type dumped struct {
	Key      string          `json:"key"`
	Kind     string          `json:"kind,omitempty"`
	Schema   uint32          `json:"schema,omitempty"`
	Revision int64           `json:"revision"`
	Record   json.RawMessage `json:"record,omitempty"`
	Raw      []byte          `json:"raw,omitempty"`
}

// Dump returns the whole store as of one moment as indented JSON, ordered by key. It never refuses a record: what is
// damaged or newer than this version is in the dump as raw bytes in base64.
func (s *Store) Dump(ctx context.Context) ([]byte, error) {
	resp, err := s.get(ctx, rootKey, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("dump", "store", err)
	}
	dump := struct {
		Revision int64    `json:"revision"`
		Records  []dumped `json:"records"`
	}{Revision: resp.Header.GetRevision(), Records: []dumped{}}
	for _, kv := range resp.Kvs {
		d := dumped{Key: string(kv.Key), Revision: kv.ModRevision}
		d.fill(kv.Value)
		dump.Records = append(dump.Records, d)
	}
	out, err := json.MarshalIndent(dump, "", "  ")
	if err != nil {
		return nil, fault.New(fault.Internal, "dump store: %w", err)
	}
	return append(out, '\n'), nil
}

func (d *dumped) fill(value []byte) {
	env := new(godwitv1.Envelope)
	if err := proto.Unmarshal(value, env); err != nil {
		d.Raw = value
		return
	}
	d.Kind, d.Schema = env.GetKind(), env.GetSchema()
	blank := blanks[d.Kind]
	if blank == nil || d.Schema > schema {
		d.Raw = env.GetRecord()
		return
	}
	m := blank()
	if err := proto.Unmarshal(env.GetRecord(), m); err != nil {
		d.Raw = env.GetRecord()
		return
	}
	record, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		d.Raw = env.GetRecord()
		return
	}
	d.Record = record
}
