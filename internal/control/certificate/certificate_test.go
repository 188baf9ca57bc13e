package certificate_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/certificate"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// signer signs for whoever calls.
type signer struct{ ca *peer.CA }

func (s signer) SignCertificate(ctx context.Context, req *connect.Request[godwitv1.SignCertificateRequest]) (*connect.Response[godwitv1.SignCertificateResponse], error) {
	host, _ := peer.HostID(ctx)
	signed, err := s.ca.Sign(req.Msg.GetCsr(), host, []string{"127.0.0.1"})
	return connect.NewResponse(&godwitv1.SignCertificateResponse{Certificate: signed}), err
}

// The story: a witness, which cannot sign, has a new certificate signed by the one host that it can ask; while that is away it goes on with the old one.
func TestAWitnessHasItsCertificateSigned(t *testing.T) {
	ca, err := peer.NewCA("alps")
	ok(t, err)
	join := func(host inventory.HostID) *peer.Identity {
		request, err := peer.NewRequest(host)
		ok(t, err)
		signed, err := ca.Sign(request.CSR(), host, []string{"127.0.0.1"})
		ok(t, err)
		id, err := request.Save(t.TempDir(), ca.Certificate(), signed)
		ok(t, err)
		return id
	}
	first, identity := join("host-1"), join("witness-1")
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	ok(t, err)
	s := storetest.Open(t)
	known := func(host inventory.HostID, spec inventory.HostSpec) certificate.Holder {
		ok(t, s.Admit(t.Context(), host))
		now, _, err := s.NextEpoch(t.Context(), host, "boot-1")
		ok(t, err)
		w := s.As(host, now.Epoch)
		ok(t, w.PutHostSpec(t.Context(), spec))
		return certificate.Holder{Host: host, Identity: identity, Store: s, Writer: w, Peers: peer.NewDialer(identity)}
	}
	known("host-1", inventory.HostSpec{Address: l.Addr().String()})
	known("witness-2", inventory.HostSpec{Address: "127.0.0.1:1", Witness: true}) // is not asked
	holder := known("witness-1", inventory.HostSpec{Address: "127.0.0.1:1", Witness: true})
	defer holder.Peers.Close()

	was := identity.Certificate()
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewCertificateServiceHandler(signer{ca}))
	go func() { ended <- (&peer.Server{Identity: first, HTTP: mux}).Run(ctx, l) }()
	ok(t, holder.Rotate(t.Context(), holder.Ask))
	now := identity.Certificate()
	if now.Serial == was.Serial {
		t.Errorf("it still shows %+v", was)
	}
	end()
	ok(t, <-ended)
	if err := holder.Rotate(t.Context(), holder.Ask); !fault.Is(err, fault.Unavailable) || identity.Certificate().Serial != now.Serial {
		t.Errorf("with nobody to ask: %v, and it shows %+v", err, identity.Certificate())
	}
}
