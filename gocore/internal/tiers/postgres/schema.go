package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// schemaLock is the advisory lock "WEIR": two services that start at once create the schema once.
const schemaLock = 0x57454952

// migrations has one entry per schema version; it is the list of service/tiers/postgres.py, which either service may
// find applied by the other. An entry that was released is never edited, the next change is a new entry in both.
var migrations = []string{
	`
    CREATE TABLE weir_profiles (key bytea PRIMARY KEY, lsn bigint NOT NULL, profile bytea NOT NULL)
        WITH (fillfactor = 70);  -- room for the new version of a profile in its own page: no index entry per update
    CREATE TABLE weir_positions (consumer text PRIMARY KEY, lsn bigint NOT NULL);
    INSERT INTO weir_positions VALUES ('postgres', 0), ('ledger', 0);
    CREATE TABLE weir_ledger (
        lsn bigint PRIMARY KEY,
        event_id text NOT NULL,
        ts bigint NOT NULL,          -- ms UTC, event time
        card_id text NOT NULL,
        merchant_id text NOT NULL,
        amount bigint NOT NULL,      -- minor units of currency
        currency text NOT NULL,
        score double precision NOT NULL,
        outcome text NOT NULL,
        model text NOT NULL,
        scorer text NOT NULL,
        reasons text[] NOT NULL,
        tx bytea NOT NULL,           -- the body as it was accepted, JSON in UTF-8
        label smallint               -- 1 fraud, 0 legit, null unknown
    );
    CREATE INDEX weir_ledger_event_id ON weir_ledger (event_id);
    `,
}

// migrate brings the schema up to date, in one transaction.
func migrate(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", schemaLock); err != nil {
			return err
		}
		var isThere bool
		if err := tx.QueryRow(ctx, "SELECT to_regclass('weir_schema') IS NOT NULL").Scan(&isThere); err != nil {
			return err
		}
		if !isThere {
			if _, err := tx.Exec(ctx, "CREATE TABLE weir_schema (version int NOT NULL)"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO weir_schema VALUES (0)"); err != nil {
				return err
			}
		}
		return apply(ctx, tx)
	})
}

func apply(ctx context.Context, tx pgx.Tx) error {
	var version int
	if err := tx.QueryRow(ctx, "SELECT version FROM weir_schema").Scan(&version); err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("its schema is version %d, this Weir knows %d: %w", version, len(migrations), ErrNewerSchema)
	}
	if version == len(migrations) {
		return nil
	}
	for _, migration := range migrations[version:] {
		if _, err := tx.Exec(ctx, migration); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, "UPDATE weir_schema SET version = $1", len(migrations))
	return err
}
