// Package image tests Godwit with a real cloud image: Debian 12 with cloud-init, OpenSSH and qemu-guest-agent, which test/image/make builds. It is made
// a VM as an administrator would make it, and entered by SSH with the key that the seed brought. `make imagetest` does all of it; it
// needs mmdebstrap, syslinux, mtools and dosfstools, and some minutes where guests are emulated, so `make test` leaves it out.
//
// That the same commands work with a guest that boots in seconds is tested in test/gate, always.
package image
