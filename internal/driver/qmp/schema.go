package qmp

import (
	"context"
	"slices"
)

// Schema is what QEMU says of its own commands, events and types (query-qmp-schema). It answers by name whether
// something exists, so that nothing is guessed from a version.
type Schema struct {
	byName map[string]entity
}

// entity is one entry of the schema (QAPI "SchemaInfo").
type entity struct {
	Name     string    `json:"name"`
	Meta     string    `json:"meta-type"`
	Arg      string    `json:"arg-type"`
	Ret      string    `json:"ret-type"`
	Element  string    `json:"element-type"`
	Values   []string  `json:"values"`
	Members  []member  `json:"members"`
	Variants []variant `json:"variants"`
}

// member is a member of an object type, or a value of an enum type.
type member struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// variant is the part of an object that it has only with one value of its tag.
type variant struct {
	Case string `json:"case"`
	Type string `json:"type"`
}

// Schema asks for the schema: a quarter of a megabyte, for probing only.
func (c *Conn) Schema(ctx context.Context) (*Schema, error) {
	var list []entity
	if err := c.Do(ctx, "query-qmp-schema", nil, &list); err != nil {
		return nil, err
	}
	s := &Schema{byName: make(map[string]entity, len(list))}
	for _, e := range list {
		s.byName[e.Name] = e
	}
	return s, nil
}

// HasCommand reports whether the command exists.
func (s *Schema) HasCommand(name string) bool { return s.byName[name].Meta == "command" }

// HasEvent reports whether the event exists.
func (s *Schema) HasEvent(name string) bool { return s.byName[name].Meta == "event" }

// HasArgument reports whether the command takes an argument. The path leads into nested objects and, by the name of a case, into
// their variants: HasArgument("netdev_add", "stream", "reconnect-ms").
func (s *Schema) HasArgument(command string, path ...string) bool {
	_, ok := s.walk(s.byName[command].Arg, path)
	return ok && s.HasCommand(command)
}

// HasResult reports whether what the command returns has the member at path; arrays on the way are entered.
func (s *Schema) HasResult(command string, path ...string) bool {
	_, ok := s.walk(s.byName[command].Ret, path)
	return ok && s.HasCommand(command)
}

// ArgumentValues returns the values of the enum that the command's argument at path takes; nil when there is no such.
func (s *Schema) ArgumentValues(command string, path ...string) []string {
	typ, ok := s.walk(s.byName[command].Arg, path)
	if !ok {
		return nil
	}
	e := s.byName[s.element(typ)]
	if len(e.Members) > 0 {
		names := make([]string, 0, len(e.Members))
		for _, m := range e.Members {
			names = append(names, m.Name)
		}
		return names
	}
	return slices.Clone(e.Values) // QEMU before 6.2 has values only
}

// element returns the element type of an array type, any other type itself.
func (s *Schema) element(typ string) string {
	for s.byName[typ].Meta == "array" {
		typ = s.byName[typ].Element
	}
	return typ
}

// walk returns the type at path below typ.
func (s *Schema) walk(typ string, path []string) (string, bool) {
	for _, name := range path {
		e := s.byName[s.element(typ)]
		i := slices.IndexFunc(e.Members, func(m member) bool { return m.Name == name })
		j := slices.IndexFunc(e.Variants, func(v variant) bool { return v.Case == name })
		switch {
		case e.Meta == "enum" && i >= 0:
			return typ, true
		case i >= 0:
			typ = e.Members[i].Type
		case j >= 0:
			typ = e.Variants[j].Type
		default:
			return "", false
		}
	}
	return typ, true
}
