package profile_test

import (
	"errors"
	"strings"
	"testing"
	"unsafe"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

// begun is a profile of kind as an event begins it.
func begun(kind *plan.Kind) []int64 {
	words := make([]int64, kind.Words())
	words[plan.WVersion], words[plan.WLayout], words[plan.WLSN] = profile.VersionWord(kind), kind.Layout, 1<<48|7
	return words
}

func TestCheck_OwnKind_IsTakenOthersAreNot(t *testing.T) {
	all := plantest.Load(t, "cards").Kinds
	for i := range all {
		b := profile.AsBytes(begun(&all[i]))
		for j := range all {
			err := profile.Check(&all[j], b)
			if i == j && err != nil {
				t.Errorf("%s: %v", all[i].Name, err)
			}
			if i != j && !errors.Is(err, profile.ErrUnknownProfile) {
				t.Errorf("%s taken for %s: %v; want ErrUnknownProfile", all[i].Name, all[j].Name, err)
			}
		}
	}
}

func TestCheck_DamagedBytes_ErrNamesThem(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[1]
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		named  string
	}{
		"short":                    {func(b []byte) []byte { return b[:len(b)-1] }, "1023"},
		"long":                     {func(b []byte) []byte { return append(b, 0) }, "1025"},
		"none":                     {func([]byte) []byte { return nil }, "has 1024 bytes, not 0"},
		"empty slot":               {func(b []byte) []byte { clear(b); return b }, "version 0"},
		"later version":            {func(b []byte) []byte { b[0] = 2; return b }, "version 2"},
		"another kind":             {func(b []byte) []byte { b[1] = 0; return b }, "kind 0"},
		"first byte of the layout": {func(b []byte) []byte { b[8]++; return b }, "layout"},
		"last byte of the layout":  {func(b []byte) []byte { b[15]++; return b }, "layout"},
	} {
		t.Run(name, func(t *testing.T) {
			err := profile.Check(kind, c.damage(profile.AsBytes(begun(kind))))
			if !errors.Is(err, profile.ErrUnknownProfile) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("%v; want ErrUnknownProfile that names %q", err, c.named)
			}
		})
	}
}

func TestCheck_FlagsAndContent_AreNotItsBusiness(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[0]
	b := profile.AsBytes(begun(kind))
	b[2], b[len(b)-1] = 1, 0xFF
	if err := profile.Check(kind, b); err != nil {
		t.Error(err)
	}
}

func TestProfileBytes_Header_IsRead(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[2]
	b := profile.AsBytes(begun(kind))
	if profile.IsEmpty(b) || profile.IsPartial(b) || profile.LSN(b) != 1<<48|7 {
		t.Errorf("empty %v, partial %v, lsn %d", profile.IsEmpty(b), profile.IsPartial(b), profile.LSN(b))
	}
	b[2] |= 1
	if !profile.IsPartial(b) {
		t.Error("the flag is not seen")
	}
	if b[2] |= 2; b[0] != profile.Version || b[1] != 2 {
		t.Errorf("the version word is % x", b[:4])
	}
	if !profile.IsEmpty(make([]byte, kind.Size)) {
		t.Error("zeros are an empty slot")
	}
}

func TestNewSlab_Slots_AreZeroAndApart(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[3]
	slab, err := profile.NewSlab(kind, 5)
	if err != nil {
		t.Fatal(err)
	}
	for slot := range 5 {
		words := slab.Words(slot)
		if len(words) != kind.Words() || cap(words) != kind.Words() {
			t.Fatalf("slot %d has %d words and reaches %d", slot, len(words), cap(words))
		}
		for i := range words {
			if words[i] != 0 {
				t.Fatalf("slot %d, word %d is %d", slot, i, words[i])
			}
			words[i] = int64(slot)
		}
	}
	for slot := range 5 {
		words := slab.Words(slot)
		if words[0] != int64(slot) || words[len(words)-1] != int64(slot) || slab.Bytes(slot)[0] != byte(slot) {
			t.Errorf("slot %d was overwritten: %d to %d", slot, words[0], words[len(words)-1])
		}
		if &slab.All()[slot*kind.Words()] != &words[0] {
			t.Errorf("slot %d does not stand where it belongs", slot)
		}
	}
	if len(slab.LateDropped) != len(kind.Rings) {
		t.Errorf("%d counters of late events, want %d", len(slab.LateDropped), len(kind.Rings))
	}
	if err := slab.Close(); err != nil {
		t.Error(err)
	}
	if err := slab.Close(); err != nil || slab.Capacity != 0 {
		t.Errorf("closed again: %v, capacity %d", err, slab.Capacity)
	}
}

func TestSlab_SlotOutside_PanicsInsteadOfReadingOn(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[3]
	slab, err := profile.NewSlab(kind, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slab.Close() }()
	for _, slot := range []int{-1, 2, 1 << 40} {
		for name, read := range map[string]func(int){
			"words": func(slot int) { slab.Words(slot) },
			"bytes": func(slot int) { slab.Bytes(slot) },
		} {
			func() {
				defer func() { _ = recover() }()
				read(slot)
				t.Errorf("%s of slot %d came back", name, slot)
			}()
		}
	}
}

func TestView_CallersMemory_IsUsedInPlace(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[3]
	memory, late := make([]int64, 3*kind.Words()), make([]int64, len(kind.Rings))
	slab, err := profile.View(kind, unsafe.Pointer(&memory[0]), int64(kind.Size), 3, late)
	if err != nil {
		t.Fatal(err)
	}
	slab.Words(2)[0], slab.LateDropped[1] = 77, 5
	if memory[2*kind.Words()] != 77 || late[1] != 5 {
		t.Error("the slab does not write to the caller's memory")
	}
	if err := slab.Close(); err != nil {
		t.Error(err)
	}
	if memory[2*kind.Words()] != 77 {
		t.Error("closing a view took the caller's memory")
	}
}

func TestView_MemoryThatCannotBe_ErrSlabNamesIt(t *testing.T) {
	kind := &plantest.Load(t, "cards").Kinds[3]
	memory, late := make([]int64, 2*kind.Words()), make([]int64, len(kind.Rings))
	base, size := unsafe.Pointer(&memory[0]), int64(kind.Size)
	for name, c := range map[string]struct {
		base             unsafe.Pointer
		stride, capacity int64
		named            string
	}{
		"null":                 {nil, size, 1, "null"},
		"odd address":          {unsafe.Add(base, 4), size, 1, "multiple of 8"},
		"stride of less":       {base, size - 8, 1, "stride 312"},
		"stride of more":       {base, size + 8, 1, "stride 328"},
		"stride of nothing":    {base, 0, 1, "stride 0"},
		"stride backwards":     {base, -size, 1, "stride -320"},
		"capacity below":       {base, size, -1, "capacity -1"},
		"capacity beyond":      {base, size, (1<<46)/size + 1, "capacity 219902325556"},
		"capacity unthinkable": {base, size, 1<<63 - 1, "capacity 9223372036854775807"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := profile.View(kind, c.base, c.stride, c.capacity, late)
			if !errors.Is(err, profile.ErrSlab) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("%v; want ErrSlab that names %q", err, c.named)
			}
		})
	}
	if _, err := profile.View(kind, base, size, 1, late[:len(late)-1]); !errors.Is(err, profile.ErrSlab) {
		t.Errorf("a counter too few: %v, want ErrSlab", err)
	}
	if slab, err := profile.View(kind, base, size, 0, late); err != nil || slab.Capacity != 0 {
		t.Errorf("a slab of no profiles: %v", err)
	}
}
