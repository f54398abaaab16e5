package pipeline

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
)

const (
	// fetchesMax bounds the round trips under way: misses that find all of them busy share the next one.
	fetchesMax = 8
	// unknownLevel is what a row names that met a partial profile of which only that is known.
	unknownLevel = "unknown"
	drainEvery   = 5 * time.Millisecond
)

func drainPoll() <-chan time.Time { return time.After(drainEvery) }

// Level is a tier below L1. Complete: a miss there proves that no tier below has the profile either.
type Level struct {
	Tier     tiers.Tier
	Complete bool
}

// levelsMax bounds the levels: l2, redis, postgres.
const levelsMax = 4

// miss is a profile being looked for. A level may be asked if it is readable: one that is down, or may hold an old copy, counts as
// one that did not answer.
type miss struct {
	entity
	key      []byte
	readable [levelsMax]bool
	waiters  []*Row
}

// arrival is what the levels say of one profile: its bytes, nil if there are none, and which levels did not answer.
type arrival struct {
	miss     *miss
	bytes    []byte
	degraded []string
}

// lookUp pins every profile of the ticket; those that L1 lacks arrive later. Then it waits behind earlier tickets of a card.
func (p *Pipeline) lookUp(ticket *Ticket) {
	for _, row := range ticket.live {
		for kind := range p.idOf {
			id := row.ids[kind]
			if id == "" {
				row.slots[kind] = -1
				continue
			}
			slot := p.L1.Find(kind, id)
			if slot < 0 {
				if slot = p.findBelow(kind, id, row); slot < 0 {
					ticket.missing++
				}
			}
			if len(p.partial) > 0 && slot >= 0 {
				row.degrade(p.degraded(entity{kind, id}))
			}
			row.slots[kind] = slot
		}
		if ticket.pinned == nil && len(p.waitingCards) > 0 {
			ticket.waitBehind(p.waitingCards[row.tx.CardID])
		}
	}
	if ticket.missing == 0 && ticket.ahead == 0 {
		p.begin(ticket)
	} else if ticket.pinned == nil {
		for _, row := range ticket.live {
			p.waitingCards[row.tx.CardID] = ticket
		}
	}
}

// findBelow is the pinned slot of a profile that L1 lacks, or -1 if row will get it later.
func (p *Pipeline) findBelow(kind int, id string, row *Row) int {
	p.Counters.Misses.Add(1)
	name := entity{kind, id}
	if flying := p.flying[name]; flying != nil {
		flying.waiters = append(flying.waiters, row)
		return -1
	}
	key := tiers.EntityKey(p.Plan.Kinds[kind].Name, id)
	if bytes := p.WriteBehind.TakeWaiting(key); bytes != nil {
		return p.place(name, bytes)
	}
	if p.Filter != nil && !p.Filter.MaybeHas(key) {
		p.Filter.Add(key)
		return p.claim(name)
	}
	if len(p.Levels) == 0 {
		return p.claim(name)
	}
	name.id = strings.Clone(id) // a text of its own: id is a part of a whole request
	found := &miss{entity: name, key: key, waiters: []*Row{row}}
	p.flying[name] = found
	p.next = append(p.next, found)
	return -1
}

// claim is an empty pinned slot, whose name keeps no request alive.
func (p *Pipeline) claim(name entity) int { return p.L1.Claim(name.kind, strings.Clone(name.id)) }

// place is a pinned slot with these bytes.
func (p *Pipeline) place(name entity, bytes []byte) int {
	slot := p.claim(name)
	copy(p.L1.Slabs()[name.kind].Bytes(slot), bytes)
	if profile.IsPartial(bytes) {
		p.notePartial(name, []string{unknownLevel})
	}
	return slot
}

// notePartial remembers that the profile is partial, and for which levels.
func (p *Pipeline) notePartial(name entity, levels []string) {
	if p.partial[name] == nil {
		name.id = strings.Clone(name.id)
		p.partial[name] = levels
	}
}

// degraded are the levels that could not be asked for a profile, which is partial for that.
func (p *Pipeline) degraded(name entity) []string { return p.partial[name] }

// startFetch sends for everything that is missing: one round trip per level for all of it.
func (p *Pipeline) startFetch() {
	if len(p.next) == 0 || p.fetches == fetchesMax {
		return
	}
	misses := p.next
	p.next = nil
	p.fetches++
	p.ask(misses)
	go func() { p.arrivals <- p.read(context.Background(), misses) }()
}

// ask notes which levels may be asked for each miss.
func (p *Pipeline) ask(misses []*miss) {
	for _, m := range misses {
		for l := range p.Levels {
			m.readable[l] = p.WriteBehind.Readable(l, m.key)
		}
	}
}

// askOld lets every level be asked that is up, also for a copy that lacks changes: those are in the journal from the LSN on that it
// returns. Any goroutine.
func (p *Pipeline) askOld(misses []*miss) (first uint64) {
	first = ^uint64(0)
	for l := range p.Levels {
		position, isUp := p.WriteBehind.Position(l)
		if isUp {
			first = min(first, position+1)
		}
		for _, m := range misses {
			m.readable[l] = isUp
		}
	}
	return first
}

// read asks level after level for what is still missing. A miss in a complete level, or in all of them, is a new entity. It may be
// called on any goroutine.
func (p *Pipeline) read(ctx context.Context, misses []*miss) []arrival {
	found := make([]arrival, len(misses))
	open := make([]int, len(misses)) // places in misses without an answer
	for i := range misses {
		found[i].miss, open[i] = misses[i], i
	}
	for l := range p.Levels {
		level := &p.Levels[l]
		asked := make([]int, 0, len(open))
		keys := make([][]byte, 0, len(open))
		var left []int
		for _, i := range open {
			if misses[i].readable[l] {
				asked, keys = append(asked, i), append(keys, misses[i].key)
			} else {
				found[i].degraded = append(found[i].degraded, level.Tier.Name())
				left = append(left, i)
			}
		}
		if len(asked) > 0 {
			left = append(left, p.fill(ctx, level, keys, asked, found)...)
		}
		if open = left; len(open) == 0 {
			break
		}
	}
	return found
}

// fill fills found from one level, and returns the places that it leaves open.
func (p *Pipeline) fill(ctx context.Context, level *Level, keys [][]byte, asked []int, found []arrival) (left []int) {
	profiles, err := level.Tier.Fill(ctx, keys)
	if err != nil {
		slog.Warn("tier unavailable", "tier", level.Tier.Name(), "problem", err, "profiles", len(keys))
		for _, i := range asked {
			found[i].degraded = append(found[i].degraded, level.Tier.Name())
		}
		return asked
	}
	for n, i := range asked {
		bytes := profiles[n]
		if bytes != nil {
			if err := profile.Check(&p.Plan.Kinds[found[i].miss.kind], bytes); err != nil {
				slog.Error("profile refused", "tier", level.Tier.Name(), "problem", err)
				bytes = nil
			}
		}
		switch {
		case bytes != nil:
			found[i].bytes, found[i].degraded = bytes, nil
		case level.Complete:
			found[i].degraded = nil
		default:
			left = append(left, i)
		}
	}
	return left
}

// arrive gives each profile its slot and wakes everybody who waits for it, in the order in which they came.
func (p *Pipeline) arrive(list []arrival) {
	p.fetches--
	for i := range list {
		p.finish(&list[i])
	}
}

func (p *Pipeline) finish(a *arrival) {
	name := a.miss.entity
	delete(p.flying, name)
	if waiting := p.WriteBehind.TakeWaiting(a.miss.key); waiting != nil {
		a.bytes, a.degraded = waiting, p.degraded(name) // it was put together meanwhile; the levels do not have that yet
	}
	isUnknown := a.bytes == nil && len(a.degraded) > 0
	if p.Filter != nil {
		if a.bytes == nil && !isUnknown {
			p.Filter.ConfirmAbsent()
		}
		p.Filter.Add(a.miss.key)
	}
	var slot int
	if a.bytes != nil {
		slot = p.place(name, a.bytes)
	} else {
		slot = p.claim(name)
		if isUnknown {
			p.Counters.Unknown.Add(1)
			markPartial(p.L1.Slabs()[name.kind].Bytes(slot))
			p.notePartial(name, slices.Clone(a.degraded))
		}
	}
	for _, row := range a.miss.waiters {
		row.slots[name.kind] = p.L1.Find(name.kind, name.id)
		row.degrade(a.degraded)
		row.ticket.missing--
		p.release(row.ticket)
	}
	p.L1.Unpin(name.kind, slot)
}

// release begins a ticket that has everything, and then those that waited only for it.
func (p *Pipeline) release(ticket *Ticket) {
	if ticket.missing > 0 || ticket.ahead > 0 {
		return
	}
	released := []*Ticket{ticket}
	for len(released) > 0 {
		ticket, released = released[0], released[1:]
		if ticket.pinned == nil {
			for _, row := range ticket.live {
				if p.waitingCards[row.tx.CardID] == ticket {
					delete(p.waitingCards, row.tx.CardID)
				}
			}
		}
		p.begin(ticket)
		for _, follower := range ticket.followers {
			// Only the last of those ahead releases it: once more, and it would be scored twice.
			if follower.ahead--; follower.ahead == 0 && follower.missing == 0 {
				released = append(released, follower)
			}
		}
		ticket.followers = nil
	}
}

// begin is for a ticket whose profiles are all pinned.
func (p *Pipeline) begin(ticket *Ticket) {
	if ticket.pinned != nil {
		ticket.pinned(ticket)
		return
	}
	p.ready = append(p.ready, ticket)
}

// markPartial flags an empty slot: docs/reference/profile-format.md, byte 2, bit 0. The first event keeps the flag.
func markPartial(slot []byte) { slot[2] |= 1 }
