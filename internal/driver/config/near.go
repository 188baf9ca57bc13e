package config

import "strings"

// nearest returns the name that is most like the key, or nothing when none is like it: at most a third of its letters may
// differ. A key that somebody put into the wrong table is found by its last part.
func nearest(key string, names []string) string {
	best, least := "", len(key)/3+1
	for _, name := range names {
		if d := distance(key, name); d < least {
			best, least = name, d
		}
	}
	if best != "" {
		return best
	}
	last := key[strings.LastIndex(key, ".")+1:]
	for _, name := range names {
		if name[strings.LastIndex(name, ".")+1:] == last {
			return name
		}
	}
	return ""
}

// distance counts the letters to insert, remove or change to get from a to b (Levenshtein 1966).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(above+1, row[j]+1, change)
			diagonal = above
		}
	}
	return row[len(b)]
}
