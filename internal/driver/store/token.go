package store

import (
	"bytes"
	"context"
	"crypto/subtle"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of tokens.
const (
	// TokensMax is how many tokens there may be at once, used and expired ones included.
	TokensMax = 1000
	// tokenKept is how long an expired token is remembered, so that whoever tries it is told so.
	tokenKept = 7 * 24 * time.Hour
)

// Token is a one-time permission to join the cluster. The secret itself is not kept.
type Token struct {
	ID         string
	SecretHash []byte // SHA-256 of the secret
	Expires    time.Time
	UsedBy     inventory.HostID // empty: not used yet
	UsedKey    []byte           // SHA-256 of the public key that the host joined with
}

func tokenMessage(t Token) *godwitv1.Token {
	m := &godwitv1.Token{Id: t.ID, SecretHash: t.SecretHash, UsedBy: string(t.UsedBy), UsedKey: t.UsedKey}
	if !t.Expires.IsZero() {
		m.Expires = timestamppb.New(t.Expires)
	}
	return m
}

func fromTokenMessage(m *godwitv1.Token) Token {
	t := Token{ID: m.GetId(), SecretHash: m.GetSecretHash(), UsedBy: inventory.HostID(m.GetUsedBy()), UsedKey: m.GetUsedKey()}
	if m.GetExpires() != nil {
		t.Expires = m.GetExpires().AsTime()
	}
	return t
}

// CreateToken records a token. It forgets those that expired more than tokenKept ago; TokensMax others are
// fault.NoResources.
func (w *Writer) CreateToken(ctx context.Context, t Token) error {
	if err := checkID("token", t.ID); err != nil {
		return err
	}
	if len(t.SecretHash) == 0 || t.Expires.IsZero() {
		return fault.New(fault.Invalid, "create token: it needs a secret and a time at which it expires")
	}
	count, err := w.forgetOldTokens(ctx)
	if err != nil {
		return fault.Wrap("create", "token", err)
	}
	if count >= TokensMax {
		return fault.New(fault.NoResources, "create token: there are %d already: wait until some expire", count)
	}
	value, err := tokens.pack(t)
	if err != nil {
		return fault.Wrap("create", "token", err)
	}
	done, err := w.add(ctx, []clientv3.Cmp{absent(keyToken(t.ID))}, clientv3.OpPut(keyToken(t.ID), value))
	if err != nil {
		return fault.Wrap("create", "token", err)
	}
	if !done {
		return fault.New(fault.Exists, "create token: %s is there already", t.ID)
	}
	return nil
}

func (w *Writer) forgetOldTokens(ctx context.Context) (left int, err error) {
	resp, err := w.s.get(ctx, rootToken, clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	old := time.Now().Add(-tokenKept)
	for _, kv := range resp.Kvs {
		key := string(kv.Key)
		t, err := read(tokens, key, kv)
		if err != nil || t.Expires.After(old) {
			left++ // one that cannot be read is not ours to delete
			continue
		}
		if _, err := w.commit(ctx, []clientv3.Cmp{unchanged(key, kv.ModRevision)}, clientv3.OpDelete(key)); err != nil {
			return 0, err
		}
	}
	return left, nil
}

// Joining is a host that joins.
type Joining struct {
	Host        inventory.HostID
	Key         []byte // SHA-256 of its public key
	Certificate inventory.HostCertificate
}

// UseToken spends the token for a host that joins, and makes that host a member: its epoch key exists from then on, with
// epoch 0. All of it happens in one transaction, so a token admits one host once. The errors are one line each: an unknown
// token or a wrong secret is fault.Denied, an expired or used one too (naming who used it), a host name that is taken is
// fault.Exists and spends nothing.
func (w *Writer) UseToken(ctx context.Context, id string, secretHash []byte, j Joining) error {
	host := j.Host
	if err := inventory.CheckName("host", string(host)); err != nil {
		return err
	}
	epochKey := keyHost(host, partEpoch)
	member, err := hostEpochs.pack(Epoch{})
	if err != nil {
		return err
	}
	admit := []clientv3.Op{clientv3.OpPut(epochKey, member)}
	if j.Certificate.Serial != "" {
		certificate, err := hostCertificates.pack(j.Certificate)
		if err != nil {
			return err
		}
		admit = append(admit, clientv3.OpPut(keyHost(host, partCert+j.Certificate.Serial), certificate))
	}
	unknown := fault.New(fault.Denied, "join host %s: the cluster does not know this token: make one with godwit token create", host)
	if checkID("token", id) != nil {
		return unknown
	}
	_, err = apply(ctx, w, edit[Token]{
		what:    "token " + id,
		key:     keyToken(id),
		codec:   tokens,
		missing: unknown,
		adds:    true,
		before: func(ctx context.Context) ([]clientv3.Cmp, error) {
			return []clientv3.Cmp{absent(epochKey)}, nil
		},
		change: func(t *Token) error {
			switch {
			case subtle.ConstantTimeCompare(t.SecretHash, secretHash) != 1:
				return fault.New(fault.Denied, "join host %s: the token's secret is wrong: copy the token whole, or make one with godwit token create", host)
			case t.UsedBy != "":
				return fault.New(fault.Denied, "join host %s: the token was used by %s already: make another with godwit token create", host, t.UsedBy)
			case !time.Now().Before(t.Expires):
				return fault.New(fault.Denied, "join host %s: the token expired at %s: make another with godwit token create", host, t.Expires.UTC().Format(time.RFC3339))
			}
			t.UsedBy, t.UsedKey = host, j.Key
			return nil
		},
		with: func(Token) ([]clientv3.Cmp, []clientv3.Op) { return nil, admit },
		refused: func(ctx context.Context) error {
			_, revision, err := load(ctx, w.s, epochKey, hostEpochs)
			if err == nil && revision != 0 {
				err = fault.New(fault.Exists, "join host %s: the cluster has a host of that name: choose another with --name, or take that one out with godwit host remove", host)
			}
			return err
		},
	})
	return err
}

// ReturnToken undoes UseToken for a host that could not finish: the same secret and key, and no agent of that host has ever started. The
// token is good again for as long as it lives. A token that is not spent is what was wanted. A host that was removed since, or has joined
// again with another token, is fault.Conflict.
func (w *Writer) ReturnToken(ctx context.Context, id string, secretHash []byte, j Joining) error {
	denied := fault.New(fault.Denied, "undo join of host %s: the token is not the one that it joined with", j.Host)
	if checkID("token", id) != nil || checkID("host", j.Host) != nil {
		return denied
	}
	epochKey := keyHost(j.Host, partEpoch)
	spent, same := false, false
	_, err := apply(ctx, w, edit[Token]{
		what:    "token " + id,
		key:     keyToken(id),
		codec:   tokens,
		missing: denied,
		before: func(ctx context.Context) ([]clientv3.Cmp, error) {
			epoch, revision, err := load(ctx, w.s, epochKey, hostEpochs)
			if err == nil && epoch.value.Epoch != 0 {
				err = fault.New(fault.Conflict, "undo join of host %s: its agent has started: take it out with godwit host remove %s", j.Host, j.Host)
			}
			if err != nil {
				return nil, err
			}
			_, used, err := load(ctx, w.s, keyToken(id), tokens)
			// UseToken writes both in one transaction, and nobody has written either since.
			same = revision != 0 && revision == used
			return []clientv3.Cmp{unchanged(epochKey, revision), unchanged(keyToken(id), used)}, err
		},
		change: func(t *Token) error {
			spent = t.UsedBy != ""
			if subtle.ConstantTimeCompare(t.SecretHash, secretHash) != 1 || spent && (t.UsedBy != j.Host || !bytes.Equal(t.UsedKey, j.Key)) {
				return denied
			}
			if spent && !same {
				return fault.New(fault.Conflict, "undo join of host %s: it was removed from the cluster since: make another token with godwit token create", j.Host)
			}
			t.UsedBy, t.UsedKey = "", nil
			return nil
		},
		with: func(Token) ([]clientv3.Cmp, []clientv3.Op) {
			if !spent {
				return nil, nil
			}
			return nil, []clientv3.Op{clientv3.OpDelete(keyHost(j.Host, ""), clientv3.WithPrefix())}
		},
	})
	return err
}
