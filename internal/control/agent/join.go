package agent

import (
	"context"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Bounds of a token's life.
const (
	tokenLifeDefault = time.Hour
	tokenLifeMax     = 7 * 24 * time.Hour
)

// Welcome is what a host gets that joins.
type Welcome struct {
	Cluster        string
	CA             []byte // DER
	Certificate    []byte // DER
	StoreEndpoints []string
	StoreAccess    *StoreAccess // nil: the store is Godwit's own
	Secret         []byte       // nil for a witness
	Revoked        []byte       // DER
}

// StoreAccess are the files, in PEM, with which hosts reach a store that is not Godwit's own.
type StoreAccess struct{ CA, Certificate, Key []byte }

// SigningCA returns the cluster's CA, whose key the store keeps sealed with the secret that all hosts have.
func (a *Agent) SigningCA(ctx context.Context) (*peer.CA, error) {
	if a.CA != nil {
		return a.CA, nil
	}
	if len(a.Secret) == 0 {
		return nil, fault.New(fault.Conflict, "this host has no secret of the cluster, and cannot sign for it: ask another host")
	}
	box, err := a.Store.SealedCA(ctx)
	if err != nil {
		return nil, err
	}
	return a.Identity.UnsealCA(a.Secret, box)
}

// introduce notes the host's certificate, so that it can be taken back one day, and gives the key of the CA to all hosts if this one made it.
func (a *Agent) introduce(ctx context.Context) error {
	if err := a.writer.NoteCertificate(ctx, a.Identity.Certificate()); err != nil {
		return err
	}
	if a.CA == nil || len(a.Secret) == 0 {
		return nil
	}
	if _, err := a.Store.SealedCA(ctx); !fault.Is(err, fault.NotFound) {
		return err
	}
	box, err := a.CA.Seal(a.Secret)
	if err != nil {
		return err
	}
	return a.writer.PutSealedCA(ctx, box)
}

// CreateToken makes a token with which one host can join within its life; 0 is an hour. The host that joins calls this one.
func (a *Agent) CreateToken(ctx context.Context, life time.Duration) (string, error) {
	if _, err := a.SigningCA(ctx); err != nil {
		return "", fault.Wrap("create", "token", err)
	}
	if life == 0 {
		life = tokenLifeDefault
	}
	if life < 0 || life > tokenLifeMax {
		return "", fault.New(fault.Invalid, "create token: a life of %v is not possible: take up to %v", life, tokenLifeMax)
	}
	token, err := a.Identity.NewToken(a.Address)
	if err != nil {
		return "", err
	}
	return token.Text(), a.tasks.Run(ctx, "token.create", token.ID, "", func(ctx context.Context, _ *task.Task) error {
		return a.writer.CreateToken(ctx, store.Token{ID: token.ID, SecretHash: token.SecretHash(), Expires: time.Now().Add(life)})
	})
}

// Join takes a host into the cluster. The key is signed first, since a malformed request must not spend the token, and
// the certificate is handed out only once the token is spent. A witness gets no secret: it signs for nobody.
func (a *Agent) Join(ctx context.Context, text string, host inventory.HostID, csr []byte, addresses []string, witness bool) (Welcome, error) {
	token, err := peer.ParseToken(text)
	if err != nil {
		return Welcome{}, err
	}
	ca, err := a.SigningCA(ctx)
	if err != nil {
		return Welcome{}, fault.Wrap("join", "host "+string(host), err)
	}
	certificate, err := ca.Sign(csr, host, addresses)
	if err != nil {
		return Welcome{}, fault.Wrap("join", "host "+string(host), err)
	}
	joining, err := joiningOf(host, csr)
	if err != nil {
		return Welcome{}, err
	}
	if joining.Certificate, err = peer.Noted(certificate); err != nil {
		return Welcome{}, err
	}
	revoked, _, err := a.Store.Revoked(ctx)
	if err != nil {
		return Welcome{}, err
	}
	if len(revoked) == 0 {
		if revoked, err = ca.Revoke(nil); err != nil {
			return Welcome{}, err
		}
	}
	if err := a.writer.UseToken(ctx, token.ID, token.SecretHash(), joining); err != nil {
		return Welcome{}, err
	}
	a.tasks.Event(ctx, inventory.Event{
		Kind: "host.joined", Object: string(host), ObjectName: string(host), Message: "at " + strings.Join(addresses, ", ") + ", with token " + token.ID,
	})
	w := Welcome{
		Cluster: a.Identity.Cluster(), CA: a.Identity.CA(), Certificate: certificate, StoreEndpoints: a.Store.Endpoints(),
		StoreAccess: a.StoreAccess, Secret: a.Secret, Revoked: revoked,
	}
	if witness {
		w.Secret = nil
	}
	return w, nil
}

// Leave undoes the join of a host that could not be finished there. The token's secret and the key of the request say that it is the same host.
func (a *Agent) Leave(ctx context.Context, text string, host inventory.HostID, csr []byte) error {
	token, err := peer.ParseToken(text)
	if err != nil {
		return err
	}
	joining, err := joiningOf(host, csr)
	if err != nil {
		return err
	}
	if err := a.writer.ReturnToken(ctx, token.ID, token.SecretHash(), joining); err != nil {
		return err
	}
	a.tasks.Event(ctx, inventory.Event{
		Kind: "host.left", Object: string(host), ObjectName: string(host), Message: "it could not finish its join; token " + token.ID + " is good again",
	})
	return nil
}

func joiningOf(host inventory.HostID, csr []byte) (store.Joining, error) {
	key, err := peer.KeyOf(csr)
	return store.Joining{Host: host, Key: key}, err
}
