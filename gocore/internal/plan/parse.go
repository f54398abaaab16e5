package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
)

// ErrPlan is wrapped by every error of Parse: the bytes are not a plan that this program can run.
var ErrPlan = errors.New("not a usable plan")

// Bounds on what a plan may ask for; the spec's own are tighter (features/spec.py).
const (
	magic     = "WEIRPLN1"
	magic2    = "WEIRPLN2"
	lineBytes = 64
	sizeMax   = 1 << 26 // bytes of a profile
	tilesMax  = 16_384  // of a ring
	listMax   = 4_096   // kinds, features, rings, fields, ...
	textMax   = 256     // bytes of a name
	tileMSMax = 366 * 86_400_000
	rateMax   = 10_000_000
	spikeMax  = 100_000 // thousandths of the mean; times the largest amount it still fits a word
	rawMax    = 1 << 16 // words of the raw input of one event; an arena holds 16 of them
)

// Parse reads the plan's bytes (docs/reference/plan-format.md) and checks everything that a wrong value could break later.
// All errors wrap ErrPlan and say what was found and what was expected.
func Parse(data []byte) (p *Plan, err error) {
	defer func() { // the reader stops at the first fault by a panic of its own; any other one is ours
		if found := recover(); found != nil {
			known, ok := found.(fault)
			if !ok {
				panic(found)
			}
			p, err = nil, fmt.Errorf("%w: %s", ErrPlan, string(known))
		}
	}()
	r := &reader{data: data}
	got := string(r.bytes(len(magic), "magic"))
	if r.second = got == magic2; !r.second && got != magic {
		r.fail("it begins with %q, not with %q or %q", got, magic, magic2)
	}
	if n := r.u32(); n != Columns {
		r.fail("it has %d event columns, this program knows %d", n, Columns)
	}
	nKinds, nFeatures, nCurrencies := r.count(1, "kinds"), r.count(1, "features"), r.count(0, "currencies")
	sum := sha256.Sum256(data)
	p = &Plan{Currencies: map[string]int64{}, RawWords: Columns, Hash: hex.EncodeToString(sum[:])}
	for n := range nKinds {
		p.Kinds = append(p.Kinds, r.kind(p, n))
		if p.RawWords += p.Kinds[n].Observed(); p.RawWords > rawMax {
			r.fail("%s: the raw input has %d words up to here, not at most %d", p.Kinds[n].Name, p.RawWords, rawMax)
		}
	}
	for range nFeatures {
		p.Features = append(p.Features, r.feature(p))
	}
	for range nCurrencies {
		r.currency(p)
	}
	if left := len(data) - r.at; left != 0 {
		r.fail("%d bytes follow its end", left)
	}
	if p.LongestMS == 0 {
		p.LongestMS = 86_400_000
	}
	return p, nil
}

// fault is the reader's panic value.
type fault string

type reader struct {
	data   []byte
	at     int
	second bool // version 2
}

// codeMax is the last code of a ring field that the plan's version knows.
func (r *reader) codeMax() int {
	if r.second {
		return Spikes
	}
	return Distinct
}

func (r *reader) fail(format string, args ...any) {
	panic(fault(fmt.Sprintf(format, args...)))
}

func (r *reader) bytes(n int, what string) []byte {
	if n < 0 || n > len(r.data)-r.at {
		r.fail("%s needs %d bytes at %d, %d are left", what, n, r.at, len(r.data)-r.at)
	}
	r.at += n
	return r.data[r.at-n : r.at]
}

func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.bytes(4, "a number")) }
func (r *reader) i32() int    { return int(int32(r.u32())) }
func (r *reader) i64() int64  { return int64(binary.LittleEndian.Uint64(r.bytes(8, "a number"))) }

// within reads an i32 that has to lie in [low, high].
func (r *reader) within(low, high int, what string) int {
	value := r.i32()
	if value < low || value > high {
		r.fail("%s is %d, not within %d to %d", what, value, low, high)
	}
	return value
}

func (r *reader) count(least int, what string) int {
	return r.within(least, listMax, "the number of "+what)
}

func (r *reader) text(what string) string {
	n := int(binary.LittleEndian.Uint16(r.bytes(2, what)))
	if n == 0 || n > textMax {
		r.fail("%s has %d bytes, not 1 to %d", what, n, textMax)
	}
	return string(r.bytes(n, what))
}

func (r *reader) kind(p *Plan, number int) Kind {
	start := r.at
	k := Kind{Name: r.text("the name of a kind"), Number: number}
	k.IDField = r.text("the id field of " + k.Name)
	head := r.at
	k.Size = r.within(lineBytes, sizeMax, k.Name+": size")
	k.HeaderWords = r.within(FixedWords, k.Size/8, k.Name+": header words")
	if k.Size%lineBytes != 0 || k.HeaderWords*8%lineBytes != 0 {
		r.fail("%s: size %d and header %d are not whole cache lines", k.Name, k.Size, k.HeaderWords*8)
	}
	k.StateWord = r.within(FixedWords, k.HeaderWords, k.Name+": state word")
	k.RawStart = r.within(p.RawWords, p.RawWords, k.Name+": raw start")
	nRemembered, nBlocks := r.count(0, k.Name+"'s remembered values"), r.count(0, k.Name+"'s blocks")
	k.Layout = r.i64()
	nRings := r.count(0, k.Name+"'s rings")
	for range nRemembered {
		k.Remembered = append(k.Remembered, r.remembered(&k))
	}
	for free := k.StateWord; len(k.Blocks) < nBlocks; {
		b := r.block(&k, free)
		free = b.Stop
		k.Blocks = append(k.Blocks, b)
	}
	k.lay()
	for n := range nRings {
		k.Rings = append(k.Rings, r.ring(p, &k, n))
		p.Rings++
	}
	end, plain := r.at, true
	if r.second {
		plain = !r.extension(&k) && !slices.ContainsFunc(k.Rings, func(ring Ring) bool { return ring.TileMS == EverMS })
	}
	own := r.data[start:r.at]
	if plain {
		own = r.data[start:end]
	}
	r.checkLayout(&k, own, head-start)
	if !slices.Contains(ColumnNames[CardID:Lat], k.IDField) {
		r.fail("%s: %q is not a field that names an entity", k.Name, k.IDField)
	}
	return k
}

// extension reads what version 2 adds to a kind, and tells whether it says anything.
func (r *reader) extension(k *Kind) bool {
	k.Spike.Thousandths = r.i64()
	k.Spike.CountWord, k.Spike.SumWord = r.i32(), r.i32()
	if spike := k.Spike; spike != (Spike{}) {
		for _, word := range []int{spike.CountWord, spike.SumWord} {
			if word < k.StateWord || word >= k.HeaderWords || spike.Thousandths < 1 || spike.Thousandths > spikeMax {
				r.fail("%s: spikes over %d thousandths of words %d and %d", k.Name, spike.Thousandths, spike.CountWord, spike.SumWord)
			}
		}
	}
	nEdges := r.count(0, k.Name+"'s edges")
	for range nEdges {
		if len(k.Rings) == 0 {
			r.fail("%s: an edge of no ring", k.Name)
		}
		ring := &k.Rings[r.within(0, len(k.Rings)-1, k.Name+": an edge's ring")]
		where := k.Name + "." + ring.Name
		w := Window{Code: r.within(Oldest, Newest, where+": an edge's code")}
		code := r.within(0, nCodes-1, where+": an edge's field")
		w.Skip = r.within(0, ring.Tiles-1, where+": an edge's skip")
		w.Tiles = r.within(1, ring.Tiles-w.Skip, where+": an edge's tiles")
		w.Word = r.within(k.StateWord, k.HeaderWords-1, where+": an edge's word")
		w.Field = slices.IndexFunc(ring.Fields, func(f Field) bool { return f.Code == code })
		if w.Field < 0 || (code != Frauds && (code != Count || w.Skip == 0)) || ring.TileMS == EverMS {
			r.fail("%s: an edge of field %d, skipping %d tiles, cannot be kept", where, code, w.Skip)
		}
		ring.Windows = append(ring.Windows, w)
	}
	return k.Spike != (Spike{}) || nEdges > 0
}

// checkLayout recomputes the layout number: the first 8 bytes of the sha256 of the kind's own bytes without
// raw start (the fourth number of its head) and layout itself (after the sixth).
func (r *reader) checkLayout(k *Kind, bytes []byte, head int) {
	own := slices.Clone(bytes)
	clear(own[head+12 : head+16])
	clear(own[head+24 : head+32])
	sum := sha256.Sum256(own)
	if want := int64(binary.LittleEndian.Uint64(sum[:8]) >> 1); k.Layout != want {
		r.fail("%s: layout is %016x, its bytes give %016x", k.Name, k.Layout, want)
	}
}

func (r *reader) remembered(k *Kind) Remembered {
	m := Remembered{TSWord: r.within(FixedWords, k.StateWord-1, k.Name+": a remembered ts word")}
	n := r.within(1, k.StateWord-1-m.TSWord, k.Name+": the number of remembered columns")
	for range n {
		m.Columns = append(m.Columns, r.within(0, Columns-1, k.Name+": a remembered column"))
	}
	return m
}

// block reads one that begins at the first free word or later.
func (r *reader) block(k *Kind, free int) Block {
	b := Block{Code: r.within(0, r.codeMax(), k.Name+": a block's code"), Of: r.within(-1, Columns-1, k.Name+": a block's column")}
	b.Start = r.within(free, k.HeaderWords-1, k.Name+": a block's start")
	b.Stop = r.within(b.Start+1, k.HeaderWords, k.Name+": a block's stop")
	if b.Code == Frauds || (b.Code == Distinct) != (b.Of >= 0) {
		r.fail("%s: a block of code %d cannot be of column %d", k.Name, b.Code, b.Of)
	}
	return b
}

func (r *reader) ring(p *Plan, k *Kind, number int) Ring {
	ring := Ring{Name: r.text("the name of a ring of " + k.Name), Number: number, TileMS: r.i64()}
	where := k.Name + "." + ring.Name
	if isEver := r.second && ring.TileMS == EverMS; ring.TileMS < 1 || (ring.TileMS > tileMSMax && !isEver) {
		r.fail("%s: a tile of %d ms is not within 1 to %d", where, ring.TileMS, int64(tileMSMax))
	}
	ring.Tiles = r.within(1, tilesMax, where+": tiles")
	if ring.TileMS == EverMS && ring.Tiles != 1 {
		r.fail("%s: %d tiles that never close", where, ring.Tiles)
	}
	ring.Of = r.within(-1, Columns-1, where+": column")
	nFields, nWindows := r.within(1, nCodes, where+": the number of fields"), r.count(0, where+"'s windows")
	for range nFields {
		ring.Fields = append(ring.Fields, r.field(k, &ring, where))
	}
	for range nWindows {
		ring.Windows = append(ring.Windows, r.window(k, &ring, where))
	}
	ring.Width = slices.Index(p.Widths, ring.TileMS)
	if ring.Width < 0 {
		ring.Width = len(p.Widths)
		p.Widths = append(p.Widths, ring.TileMS)
	}
	if ring.TileMS != EverMS {
		p.LongestMS = max(p.LongestMS, ring.TileMS*int64(ring.Tiles))
	}
	k.KeepsFrauds = k.KeepsFrauds || ring.FraudsField() != nil
	return ring
}

func (r *reader) field(k *Kind, ring *Ring, where string) Field {
	f := Field{Code: r.within(0, r.codeMax(), where+": a field's code")}
	f.Narrow = f.Code == Count || f.Code == Frauds || f.Code == Spikes
	f.Open = r.within(k.StateWord, k.HeaderWords-1, where+": an open word")
	width := 8
	if f.Narrow {
		width = 4
	}
	f.Cells = r.within(k.HeaderWords*8/width, k.Size/width-ring.Tiles, where+": the first cell")
	if slices.ContainsFunc(ring.Fields, func(other Field) bool { return other.Code == f.Code }) {
		r.fail("%s: field %d is there twice", where, f.Code)
	}
	if (f.Code == Distinct) && ring.Of < 0 {
		r.fail("%s: it counts distinct values of no column", where)
	}
	return f
}

func (r *reader) window(k *Kind, ring *Ring, where string) Window {
	w := Window{Code: r.within(0, r.codeMax(), where+": a window's code")}
	w.Skip = r.within(0, ring.Tiles-1, where+": a window's skip")
	w.Tiles = r.within(1, ring.Tiles-w.Skip, where+": a window's tiles")
	w.Word = r.within(k.StateWord, k.HeaderWords-1, where+": a window's word")
	w.Field = slices.IndexFunc(ring.Fields, func(f Field) bool { return f.Code == w.Code })
	if w.Field < 0 {
		r.fail("%s: a window reads field %d, which the ring does not keep", where, w.Code)
	}
	return w
}

func (r *reader) feature(p *Plan) Feature {
	f := Feature{Name: r.text("the name of a feature")}
	last := OpPresent
	if r.second {
		last = nOps - 1
	}
	f.Op = Op(r.within(0, int(last), f.Name+": op"))
	f.Log1p = r.within(0, 1, f.Name+": log1p") == 1
	f.Scale = math.Float64frombits(uint64(r.i64()))
	if math.IsNaN(f.Scale) || math.IsInf(f.Scale, 0) {
		r.fail("%s: scale %v is not finite", f.Name, f.Scale)
	}
	n := r.within(operands[f.Op], operands[f.Op], f.Name+": the number of operands")
	for range n {
		f.Operands = append(f.Operands, r.within(0, p.RawWords-1, f.Name+": an operand"))
	}
	return f
}

func (r *reader) currency(p *Plan) {
	code := string(r.bytes(3, "a currency"))
	for _, letter := range code {
		if letter < 'A' || letter > 'Z' {
			r.fail("%q is not a currency", code)
		}
	}
	rate := r.i64()
	if rate < 1 || rate > rateMax {
		r.fail("%s: rate %d is not within 1 to %d millionths", code, rate, rateMax)
	}
	if _, twice := p.Currencies[code]; twice {
		r.fail("%s is there twice", code)
	}
	p.Currencies[code] = rate
}
