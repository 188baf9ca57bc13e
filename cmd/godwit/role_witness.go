package main

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/witness"
	"github.com/godwit-vm/godwit/internal/driver/peer"
)

// runWitness is the agent of a machine that runs no VMs.
func runWitness(ctx context.Context, c *hostConfig, r roleRun) error {
	identity, err := peer.Load(c.pki())
	if err != nil {
		return err
	}
	s, err := waitForStore(ctx, c, identity, r)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // what was written is acknowledged
	proofs := make(chan chan struct{})
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error {
		return witness.Run(ctx, witness.Config{
			Host: c.Host, Address: c.agentAddress(), Version: version, Identity: identity, Store: s,
			StoreClient: c.storeClient(), StorePeer: c.storePeer(), Lease: authoritySettings(r.set).Lease, Proofs: proofs, Log: r.log,
		})
	})
	all.Go(func() error { return c.follow(ctx, identity, r, s) })
	all.Go(func() error {
		r.line.Beat(ctx, func(ctx context.Context) error { return proven(ctx, proofs) })
		return nil
	})
	return all.Wait()
}
