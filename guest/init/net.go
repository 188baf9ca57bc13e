//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/godwit-vm/godwit/guest/control"
)

// dhcpMax bounds the wait for an address that was asked for.
const dhcpMax = 20 * time.Second

// dhcp asks for an address on a card that was plugged in, and gives it to the card. The first card's is network's affair.
func (g *guest) dhcp(ctx context.Context, r control.Request) (control.Net, error) {
	if err := allowed(r, "dev"); err != nil {
		return control.Net{}, err
	}
	name := r.Args["dev"]
	if name == nic || name == "" {
		return control.Net{}, fmt.Errorf("%q has its address by itself; use dev=eth1", name)
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		return control.Net{}, fmt.Errorf("card %s: %w", name, err)
	}
	if err := linkUp(name); err != nil {
		return control.Net{}, err
	}
	ctx, done := context.WithTimeout(ctx, dhcpMax)
	defer done()
	conn, err := listenDHCP(ctx, name)
	if err != nil {
		return control.Net{}, err
	}
	defer func() { _ = conn.Close() }() // only datagrams
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ack, err := acquire(ctx, conn, device.HardwareAddr)
	if err != nil {
		return control.Net{}, fmt.Errorf("card %s gets no address: %w", name, err)
	}
	l := leaseOf(ack)
	return control.Net{Name: name, MAC: device.HardwareAddr.String(), IP: l.address.String(), Server: l.server.String()}, l.apply(name, false)
}
