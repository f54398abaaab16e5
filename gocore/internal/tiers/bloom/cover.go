package bloom

import (
	"context"

	"weir/gocore/internal/tiers"
)

// Filter is what Cover fills: a Maybe or a Rotating.
type Filter interface {
	Add(key []byte)
	Cover()
}

// Cover adds every key of the sources to filter, then lets its absences count. After an error, which is the first one of
// a source, the filter stays as it was: its answer is maybe. Whoever stores a new key meanwhile adds it himself.
func Cover(ctx context.Context, filter Filter, sources ...tiers.Keys) error {
	for _, source := range sources {
		err := source.Keys(ctx, func(key []byte) error {
			filter.Add(key)
			return nil
		})
		if err != nil {
			return err
		}
	}
	filter.Cover()
	return nil
}
