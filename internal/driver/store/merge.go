package store

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// merge brings into a record the difference between base and next, and touches nothing else.
//
// The record may come from a newer Godwit: fields that this version has no name for, values of enums and names of
// states that it reads as unknown. base is what this version understood of the record, next is what its caller made of
// that; so what differs between the two was meant, and all the rest stays as it was. Elements of lists are matched by
// their first string field (the name of a disk, the id of a mount), so that a removed disk takes its unknown fields
// with it and the others keep theirs.
func merge(record, base, next proto.Message) {
	mergeMessage(record.ProtoReflect(), base.ProtoReflect(), next.ProtoReflect())
}

func mergeMessage(record, base, next protoreflect.Message) {
	fields := record.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if base.Has(fd) == next.Has(fd) && base.Get(fd).Equal(next.Get(fd)) {
			continue
		}
		switch {
		case !next.Has(fd):
			record.Clear(fd)
		case fd.IsList() && fd.Message() != nil:
			mergeList(record, base, next, fd)
		case !fd.IsList() && !fd.IsMap() && fd.Message() != nil:
			mergeMessage(record.Mutable(fd).Message(), base.Get(fd).Message(), next.Get(fd).Message())
		default:
			record.Set(fd, next.Get(fd))
		}
	}
}

// mergeList replaces the record's list by next's, in next's order; an element that base had too is merged, not replaced.
// base was made from the record, so the two lists have their elements in the same places.
func mergeList(record, base, next protoreflect.Message, fd protoreflect.FieldDescriptor) {
	was, is := base.Get(fd).List(), record.Get(fd).List()
	places := map[string]int{}
	for i := range was.Len() {
		places[elementName(was.Get(i).Message())] = i
	}
	list := record.NewField(fd).List()
	wanted := next.Get(fd).List()
	for i := range wanted.Len() {
		want := wanted.Get(i).Message()
		name := elementName(want)
		place, ok := places[name]
		if !ok || name == "" || place >= is.Len() {
			list.Append(wanted.Get(i))
			continue
		}
		delete(places, name) // a name that is there twice is matched once
		element := proto.Clone(is.Get(place).Message().Interface()).ProtoReflect()
		mergeMessage(element, was.Get(place).Message(), want)
		list.Append(protoreflect.ValueOfMessage(element))
	}
	record.Set(fd, protoreflect.ValueOfList(list))
}

// elementName returns field 1 of a list element when it is a string.
func elementName(m protoreflect.Message) string {
	fd := m.Descriptor().Fields().ByNumber(1)
	if fd == nil || fd.Kind() != protoreflect.StringKind || fd.IsList() {
		return ""
	}
	return m.Get(fd).String()
}
