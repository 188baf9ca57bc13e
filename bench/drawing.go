package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Measures of the drawing, in pixels.
const (
	drawWidth  = 820
	drawLabel  = 170 // left of the bars
	drawBar    = 18
	drawRow    = 46
	drawMargin = 24
)

// drawing is the report as SVG: how much longer than plain QEMU each case took, and how much longer the guest stood still.
func (r *Report) drawing() string {
	var b strings.Builder
	rows := len(r.Cases) * drawRow
	height := 2*rows + 190
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n",
		drawWidth, height, drawWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", drawWidth, height)
	text(&b, drawMargin, 28, 16, "start", "Live migration: Godwit beside plain QEMU-to-QEMU, pair by pair")
	text(&b, drawMargin, 48, 12, "start", fmt.Sprintf("%s · QEMU %s, %s · %d CPUs · %s", r.Machine.Date, r.Machine.QEMU, r.Machine.Accelerator, r.Machine.CPUs, r.Machine.Commit))
	p := panel{title: "total time, request to completed, as a multiple of plain's", unit: "×", goal: ratioGoal, base: 1}
	for _, c := range r.Cases {
		p.add(c, func(g, plain Sample) float64 { return g.Total / plain.Total })
	}
	p.draw(&b, 84)
	p = panel{title: "STOP to RESUME, milliseconds beyond plain's", unit: " ms", goal: pauseGoal}
	for _, c := range r.Cases {
		p.add(c, func(g, plain Sample) float64 { return g.Pause - plain.Pause })
	}
	p.draw(&b, float64(84+rows+50))
	text(&b, drawMargin, float64(height-14), 12, "start", "Bars: median. Dots: single pairs. Dashed: the goal.")
	b.WriteString("</svg>\n")
	return b.String()
}

// panel is one set of bars with a common scale.
type panel struct {
	title, unit string
	goal, base  float64 // where the bars begin
	names       []string
	values      [][]float64
}

func (p *panel) add(c Case, f func(godwit, plain Sample) float64) {
	var values []float64
	for _, pair := range c.Pairs {
		ours, ok := pair.of(godwit)
		theirs, also := pair.of(plainTuned)
		if ok && also {
			values = append(values, f(ours, theirs))
		}
	}
	p.names, p.values = append(p.names, c.String()), append(p.values, values)
}

func (p panel) draw(b *strings.Builder, top float64) {
	low, high := min(p.base, p.goal), max(p.base, p.goal)
	for _, values := range p.values {
		for _, v := range values {
			low, high = min(low, v), max(high, v)
		}
	}
	room := (high - low) * 0.05
	low, high = low-room, high+room
	x := func(v float64) float64 { return drawLabel + (v-low)/(high-low)*(drawWidth-drawLabel-90) }
	text(b, drawMargin, top, 14, "start", p.title)
	bottom := top + 14 + float64(len(p.names)*drawRow)
	vertical(b, x(p.base), top+10, bottom, `stroke="black"`)
	vertical(b, x(p.goal), top+10, bottom, `stroke="#c00" stroke-dasharray="5 4"`)
	text(b, x(p.goal)+4, bottom+4, 11, "start", fmt.Sprintf("goal %g%s", p.goal, p.unit))
	for i, name := range p.names {
		y := top + 20 + float64(i*drawRow)
		text(b, drawLabel-10, y+drawBar-4, 13, "end", name)
		s := spread(p.values[i])
		if s.N == 0 {
			text(b, x(p.base)+6, y+drawBar-4, 12, "start", "no pair ended")
			continue
		}
		colour := "#3a7d44"
		if s.Median > p.goal {
			colour = "#c9822b"
		}
		from, to := min(x(p.base), x(s.Median)), max(x(p.base), x(s.Median))
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", from, y, math.Max(to-from, 1), drawBar, colour)
		text(b, drawWidth-drawMargin, y+drawBar-4, 13, "end", fmt.Sprintf("%.2f%s", s.Median, p.unit))
		for _, v := range p.values[i] {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="#223" fill-opacity="0.6"/>`+"\n", x(v), y+drawBar+8)
		}
	}
}

func vertical(b *strings.Builder, x, top, bottom float64, style string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x, top, x, bottom, style)
}

func text(b *strings.Builder, x, y float64, size int, anchor, words string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" font-size="%d" text-anchor="%s">%s</text>`+"\n", x, y, size, anchor, html.EscapeString(words))
}
