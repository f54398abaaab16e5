package l1

// none is no slot.
const none = -1

// sieve decides which slot leaves when room is needed (SIEVE; Zhang et al., NSDI 2024): a queue in order of arrival with
// one bit per member, "was looked up since the hand passed". The hand walks from the oldest to the newest; a member with
// the bit loses it and stays where it is, the first without it leaves. Pinned members are passed over. A hit only sets a
// bit, so nothing moves on the hot path.
type sieve struct {
	nodes                []node
	newest, oldest, hand int32
	members              int
}

// node is what is known of a slot; 16 bytes.
type node struct {
	newer, older int32
	pins         int32
	visited      bool
}

func newSieve() sieve { return sieve{newest: none, oldest: none, hand: none} }

// grow makes room for one more slot and returns its number.
func (s *sieve) grow() int32 {
	s.nodes = append(s.nodes, node{newer: none, older: none})
	return int32(len(s.nodes) - 1)
}

// insert puts slot at the newest end, unpinned and unvisited.
func (s *sieve) insert(slot int32) {
	s.nodes[slot] = node{newer: none, older: s.newest}
	if s.newest != none {
		s.nodes[s.newest].newer = slot
	} else {
		s.oldest = slot
	}
	s.newest = slot
	s.members++
}

// remove takes slot out, wherever it stands.
func (s *sieve) remove(slot int32) {
	n := &s.nodes[slot]
	if s.hand == slot {
		s.hand = n.newer
	}
	if n.newer != none {
		s.nodes[n.newer].older = n.older
	} else {
		s.newest = n.older
	}
	if n.older != none {
		s.nodes[n.older].newer = n.newer
	} else {
		s.oldest = n.newer
	}
	s.members--
}

// evict takes out the member that may leave and returns it, or none if all are pinned.
func (s *sieve) evict() int32 {
	hand := s.hand
	for range 2 * s.members { // a first round may only take bits away
		if hand == none {
			hand = s.oldest
		}
		n := &s.nodes[hand]
		if !n.visited && n.pins == 0 {
			s.hand = hand
			s.remove(hand)
			return hand
		}
		n.visited = false
		hand = n.newer
	}
	s.hand = hand
	return none
}
