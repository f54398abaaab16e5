package tiers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// Breaker keeps calls away from a remote tier that failed, until Position has accepted it again: an outage costs one
// deadline, not one per look-up, and a store that came back with other data is not read by mistake.
//
// Nobody closes it by time. Whoever ships profiles to the tier asks for its position each second while it is down.
type Breaker struct {
	name  string
	cause atomic.Pointer[error]
}

// NewBreaker makes one for the tier called name, closed.
func NewBreaker(name string) *Breaker { return &Breaker{name: name} }

// Check fails at once, with the failure that opened it, while the breaker is open.
func (b *Breaker) Check() error {
	if cause := b.cause.Load(); cause != nil {
		return fmt.Errorf("not asked again since: %w", *cause)
	}
	return nil
}

// Trip opens the breaker because of cause and gives the error to return. A call that its caller gave up does not open it.
func (b *Breaker) Trip(ctx context.Context, cause error) error {
	err := Unavailable(b.name, cause)
	if !errors.Is(ctx.Err(), context.Canceled) {
		b.cause.CompareAndSwap(nil, &err)
	}
	return err
}

// Reset closes the breaker.
func (b *Breaker) Reset() { b.cause.Store(nil) }
