package jsontext

import (
	"strconv"
	"strings"
)

// Type is what a JSON value is.
type Type int

// The types of JSON values.
const (
	Null Type = iota
	Bool
	Number
	String
	Array
	Object
)

// Value is one node of a tree. Text is a string's characters or a number's or bool's literal; Bad marks a string (and Name of a
// member) that JSON or UTF-8 forbids, and a number that is none.
type Value struct {
	Type    Type
	Text    string
	Bad     bool
	Items   []Value
	Members []Member
}

// Member is a named value of an object.
type Member struct {
	Name  string
	Bad   bool
	Value Value
}

// Get is the member called name; the last one if there are several.
func (v *Value) Get(name string) *Value {
	for i := range v.Members {
		if v.Members[i].Name == name {
			return &v.Members[i].Value
		}
	}
	return nil
}

// Append appends v as JSON, numbers in their shortest form.
func (v *Value) Append(dst []byte) []byte {
	switch v.Type {
	case Null:
		return append(dst, "null"...)
	case Number:
		if !strings.ContainsAny(v.Text, ".eE") {
			if v.Text == "-0" {
				return append(dst, '0')
			}
			return append(dst, v.Text...)
		}
		f, _ := strconv.ParseFloat(v.Text, 64) // the literal is a number; Parse refused those that are out of range
		return AppendFloat(dst, f)
	case String:
		return AppendString(dst, v.Text)
	case Array:
		dst = append(dst, '[')
		for i := range v.Items {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = v.Items[i].Append(dst)
		}
		return append(dst, ']')
	case Object:
		dst = append(dst, '{')
		for i := range v.Members {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(AppendString(dst, v.Members[i].Name), ':')
			dst = v.Members[i].Value.Append(dst)
		}
		return append(dst, '}')
	default:
		return append(dst, v.Text...)
	}
}

// put keeps the first place and the last value of a name that comes twice.
func (v *Value) put(m Member) {
	for i := range v.Members {
		if v.Members[i].Name == m.Name {
			v.Members[i].Value = m.Value
			return
		}
	}
	v.Members = append(v.Members, m)
}
