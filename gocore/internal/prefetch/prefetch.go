//go:build amd64 || arm64

// Package prefetch asks for memory before it is needed. It has no cgo, as assembly and cgo cannot share a package.
//
// Profiles of a batch lie anywhere in a slab of hundreds of MiB: without this, every header costs a wait for memory.
package prefetch

import "unsafe"

// Lines asks for n cache lines of 64 bytes from address on. It never faults.
//
//go:noescape
func Lines(address unsafe.Pointer, n int)
