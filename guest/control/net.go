package control

import "context"

// Net is a network card of the guest that was given an address.
type Net struct {
	Name   string `json:"name"` // eth1
	MAC    string `json:"mac"`
	IP     string `json:"ip"`
	Server string `json:"server"` // who gave it
}

// Net makes the guest ask for an address on a card other than its first, and returns it. It may be asked again: each time frames go
// out and come in.
func (c *Client) Net(ctx context.Context, name string) (Net, error) {
	var n Net
	return n, c.call(ctx, "net dev="+name, &n)
}
