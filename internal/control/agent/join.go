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
}

// CreateToken makes a token with which one host can join within its life; 0 is an hour. Only the host that holds the
// cluster's CA can.
func (a *Agent) CreateToken(ctx context.Context, life time.Duration) (string, error) {
	if a.CA == nil {
		return "", fault.New(fault.Conflict, "create token: this host does not hold the cluster's CA: ask the host that ran godwit init")
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
// the certificate is handed out only once the token is spent.
func (a *Agent) Join(ctx context.Context, text string, host inventory.HostID, csr []byte, addresses []string) (Welcome, error) {
	token, err := peer.ParseToken(text)
	if err != nil {
		return Welcome{}, err
	}
	if a.CA == nil {
		return Welcome{}, fault.New(fault.Conflict, "join: this host does not hold the cluster's CA: use a token of the host that does")
	}
	certificate, err := a.CA.Sign(csr, host, addresses)
	if err != nil {
		return Welcome{}, fault.Wrap("join", "host "+string(host), err)
	}
	if err := a.writer.UseToken(ctx, token.ID, token.SecretHash(), host); err != nil {
		return Welcome{}, err
	}
	a.tasks.Event(ctx, inventory.Event{
		Kind: "host.joined", Object: string(host), ObjectName: string(host), Message: "at " + strings.Join(addresses, ", ") + ", with token " + token.ID,
	})
	return Welcome{Cluster: a.Identity.Cluster(), CA: a.Identity.CA(), Certificate: certificate, StoreEndpoints: a.Endpoints}, nil
}
