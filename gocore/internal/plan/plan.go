// Package plan holds the compiled spec that every engine reads: offsets, operators, rates.
//
// A Plan comes from the bytes that docs/reference/plan-format.md describes and is immutable. Parse checks every offset and place
// against the sizes that the plan itself states, so code that works on profiles of a parsed plan stays inside them.
package plan

import "slices"

// Columns is the number of event columns; each is one int64, -1 where the transaction has no such field.
const Columns = 11

// Places of the event columns.
const (
	TS = iota
	Amount
	Country
	MCC
	Channel
	CardID
	MerchantID
	DeviceID
	IP
	Lat
	Lon
)

// ColumnNames are the columns' names, by place.
var ColumnNames = [Columns]string{
	"ts", "amount", "country", "mcc", "channel", "card_id", "merchant_id", "device_id", "ip", "lat", "lon",
}

// Ring fields as they are stored.
const (
	Count = iota
	Frauds
	Sum
	Max
	SquaresHigh
	SquaresLow
	Distinct
	Spikes
	nCodes
)

// Windows that say where a field's values are instead of joining them: 1 + the start (ms) of the oldest or newest tile that is
// not 0; 0 for none.
const (
	Oldest = 8
	Newest = 9
)

// EverMS is the width of a tile that never closes.
const EverMS = 1 << 62

// Header words of every profile.
const (
	WVersion = iota
	WLayout
	WLSN
	WFirstLSN
	WFirstSeen
	WLastSeen
	WLateDropped
)

// FixedWords is the number of header words that every profile has; remembered words follow.
const FixedWords = 8

// What precedes the header's words in an entity's observation.
const (
	ObsPresent = iota
	ObsNew
	ObsFirstSeen
	ObsPreviousSeen
	ObsFixed
)

// Op is an operator's code.
type Op int32

// The closed set of operators.
const (
	OpValue Op = iota
	OpHour
	OpWeekday
	OpNight
	OpWeekend
	OpCount
	OpSum
	OpMean
	OpMax
	OpStd
	OpRatio
	OpZscore
	OpDistinct
	OpSinceLast
	OpAge
	OpChanged
	OpSpeedKmh
	OpFraudRate
	OpPresent
	OpFrauds // from here on of version 2
	OpSpikes
	OpSpikeShare
	OpSinceFirstFraud
	OpSinceLastFraud
	OpLastKnown
	nOps
)

// operands is how many places of the raw input each operator reads.
var operands = [nOps]int{
	OpValue: 1, OpCount: 1, OpSum: 1, OpMax: 1, OpPresent: 3, OpMean: 2, OpStd: 4, OpRatio: 2, OpZscore: 4,
	OpDistinct: 1, OpSinceLast: 3, OpAge: 3, OpChanged: 2, OpSpeedKmh: 3, OpFraudRate: 2,
	OpFrauds: 1, OpSpikes: 1, OpSpikeShare: 2, OpSinceFirstFraud: 1, OpSinceLastFraud: 1, OpLastKnown: 2,
}

// Plan is a compiled spec.
type Plan struct {
	Kinds      []Kind
	Features   []Feature
	Currencies map[string]int64 // millionths of a base minor unit per minor unit
	Widths     []int64          // the distinct widths of tiles, ms; a Ring names its own by place
	RawWords   int              // length of the raw input: columns, then an observation per kind
	LongestMS  int64            // the longest time that a ring spans
	Rings      int              // rings of all kinds
	Hash       string           // sha256 of the plan's bytes, hex
}

// FeatureNames are the features' names in the order of the vector.
func (p *Plan) FeatureNames() []string {
	names := make([]string, len(p.Features))
	for i := range p.Features {
		names[i] = p.Features[i].Name
	}
	return names
}

// Kind is one entity kind: the layout of its profiles. Words are 8 bytes, counted from the profile's start.
type Kind struct {
	Name        string
	IDField     string
	Number      int
	Size        int // bytes
	HeaderWords int
	StateWord   int // first word after the remembered ones
	RawStart    int
	Layout      int64
	KeepsFrauds bool
	Remembered  []Remembered
	Blocks      []Block
	Adds        []uint8 // from Blocks: for each word from StateWord on, whose value an event in the open tile adds: a field's code, Frauds for none
	Joins       []Block // those of Blocks that do not add: Max and Distinct
	Rings       []Ring
	Spike       Spike
}

// Spike says which amounts are spikes: those with amount * 1000 > Thousandths * (sum div count), of header words before the event,
// while count is above 0. Thousandths 0: none.
type Spike struct {
	Thousandths        int64
	CountWord, SumWord int
}

// Words is the size of a profile in words.
func (k *Kind) Words() int { return k.Size / 8 }

// Observed is the length of an observation.
func (k *Kind) Observed() int { return ObsFixed + k.HeaderWords - FixedWords }

// lay makes Adds and Joins from Blocks.
func (k *Kind) lay() {
	k.Adds = slices.Repeat([]uint8{Frauds}, k.HeaderWords-k.StateWord)
	for _, b := range k.Blocks {
		if b.Code == Max || b.Code == Distinct {
			k.Joins = append(k.Joins, b)
			continue
		}
		for word := b.Start; word < b.Stop; word++ {
			k.Adds[word-k.StateWord] = uint8(b.Code)
		}
	}
}

// Remembered is what the latest event that gave Columns said: its ts in TSWord, each value + 1 in the words after it.
type Remembered struct {
	TSWord  int
	Columns []int
}

// Block is a run of header words [Start, Stop) that an event in the open tile changes alike; in order, none overlaps another.
type Block struct {
	Code, Of, Start, Stop int
}

// Ring is a ring of Tiles tiles of TileMS; Of is the event column whose values a bitmap counts, or -1.
type Ring struct {
	Name    string
	TileMS  int64
	Tiles   int
	Of      int
	Width   int // place of TileMS in Plan.Widths
	Number  int // place among the kind's rings
	Fields  []Field
	Windows []Window
}

// FraudsField is the field that labels change, or nil.
func (r *Ring) FraudsField() *Field {
	for i := range r.Fields {
		if r.Fields[i].Code == Frauds {
			return &r.Fields[i]
		}
	}
	return nil
}

// Field is one stored field: the header word of its open tile, and where its closed tiles start, in their own width.
type Field struct {
	Code, Open, Cells int
	Narrow            bool // cells of 4 bytes
}

// Window is the running value of one field over tiles of age Skip to Skip + Tiles - 1 (0 = the open tile). Code is the field's, or
// Oldest or Newest.
type Window struct {
	Code, Skip, Tiles, Word int
	Field                   int // place in the ring's Fields
}

// IsEdge is true for Oldest and Newest.
func (w *Window) IsEdge() bool { return w.Code >= Oldest }

// Feature is one number of the vector.
type Feature struct {
	Name     string
	Op       Op
	Log1p    bool
	Scale    float64
	Operands []int
}
