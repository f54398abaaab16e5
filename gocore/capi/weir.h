/* weir.h: the one contract between the Go core and whoever calls it. cgo compiles against it, cffi reads it as it is, so it
 * holds declarations and plain constants only.
 *
 * Every call returns a status; WEIR_OK is 0. weir_last_error tells what the last failing call of this thread had to say.
 * Buffers belong to the caller and stay where they are until they are unbound; no pointer into Go memory is ever given out.
 * Handles are numbers, never used twice. A panic inside becomes WEIR_PANIC: the process lives on. Load the library after any
 * fork: a forked child must not call it. Numbers are in the machine's byte order, which is little-endian.
 */
#ifndef WEIR_H
#define WEIR_H
#include <stdint.h>

#define WEIR_ABI_VERSION 6

#define WEIR_OK 0
#define WEIR_PANIC 1
#define WEIR_BAD_ARGUMENT 2 /* a null pointer, a length, a stride, a slot, a flag: nothing was changed */
#define WEIR_BAD_PLAN 3
#define WEIR_BAD_PROFILE 4
#define WEIR_BAD_MODEL 5
#define WEIR_BAD_HANDLE 6 /* closed, or never given out */
#define WEIR_BUSY 7       /* another call works on the arena */
#define WEIR_NO_RUNTIME 8 /* libonnxruntime is missing, unusable or not open yet */

#define WEIR_ADVANCE 1 /* change the profiles */
#define WEIR_DRY 2     /* instead: each row as if it were the next event; changes nothing */
#define WEIR_VECTORS 4
#define WEIR_RISK 8 /* vectors too */
#define WEIR_UNDO 16 /* weir_undo can take back what the run has changed */

#define WEIR_REPLAY_MORE 0
#define WEIR_REPLAY_FULL 1
#define WEIR_REPLAY_BEYOND 2
#define WEIR_REPLAY_LEFT 3

#define WEIR_LEDGER_MORE 0
#define WEIR_LEDGER_FULL 1
#define WEIR_LEDGER_BEYOND 2
#define WEIR_LEDGER_LEFT 3

#define WEIR_JSON 0
#define WEIR_MSGPACK 1
#define WEIR_TAKEN 0
#define WEIR_LEFT 1

#define WEIR_EXPRESS_TAKEN 0
#define WEIR_EXPRESS_SCORED 1
#define WEIR_EXPRESS_ENCODED 2

/* Profiles of one kind: capacity blocks of stride bytes. late_dropped: a counter per ring of the kind, n_late_dropped of them. */
typedef struct {
    void *base;
    int64_t stride;
    int64_t capacity;
    int64_t *late_dropped;
    int64_t n_late_dropped;
} weir_slab;

/* Rows of int64 words, stride bytes apart; size bytes in all, from start to the end of the last row. */
typedef struct {
    int64_t *start;
    int64_t stride;
    int64_t size;
} weir_rows;

/* Memory that is bound once. Of each row: its LSN, a slot per kind (-1: absent), the event's 11 columns as in the plan's format.
 * Out: vectors float32 (rows, features) and risk float32 (rows,), without gaps; n_vectors and n_risk count their floats. */
typedef struct {
    int64_t rows;
    int64_t n_slabs;
    weir_slab *slabs;
    weir_rows lsns;
    weir_rows slots;
    weir_rows columns;
    float *vectors;
    int64_t n_vectors;
    float *risk;
    int64_t n_risk;
} weir_arena;

/* A tensor: ONNX element type (1 float32, 7 int64, ...), shape, and size bytes of elements, row by row. */
typedef struct {
    int64_t element_type;
    int64_t n_dimensions;
    int64_t *shape;
    void *data;
    int64_t size;
} weir_tensor;

/* Blocks of the journal (docs/reference/journal.md) to be taken apart into an arena, and memory for what comes out.
 *
 * In: blocks_size bytes from the start of a block on; the LSN before that block; entries up to from_lsn are passed over, none
 * above to_lsn is taken. For each kind there are id_bytes bytes of ids, others_max counts groups of 5 words, records may be null.
 *
 * Out: `rows` rows of the arena with LSN and columns, and in the place of each slot the number of the entity within its kind, -1
 * if it has none; the numbers of different kinds have nothing to do with each other. Of each kind: ids that had no number yet, in
 * the order of their numbers, which follow those given before, a line feed after each, id_ends bytes and n_new of them; and
 * n_distinct entities that the rows have: their numbers (kinds, rows of the arena) and first_rows (the same), in which each comes
 * first. Records: for each row the event id, then the record of its decision; record_ends (rows, 2) are the ends of both. Others:
 * entries that are no transactions, each as the row before which it stands, LSN, kind, the place of its body in blocks and its
 * length. last_lsn is that of the last entry that was taken, `entries` counts them. `taken` bytes are blocks that are done, and
 * before_lsn the LSN of the last of them: the next call goes on from there. forgot is 1 if numbers begin at 0 with this call. */
typedef struct {
    uint8_t *blocks;
    int64_t blocks_size;
    int64_t before_lsn;
    int64_t from_lsn;
    int64_t to_lsn;
    uint8_t *ids;
    int64_t id_bytes;
    int64_t *id_ends;
    int64_t *n_new;
    int64_t *n_distinct;
    int64_t *numbers;
    int64_t *first_rows;
    uint8_t *records;
    int64_t records_size;
    int64_t *record_ends;
    int64_t *others;
    int64_t others_max;
    int64_t rows;
    int64_t entries;
    int64_t n_others;
    int64_t taken;
    int64_t last_lsn;
    int64_t state;
    int64_t forgot;
} weir_replay_job;

/* Bodies of transactions to be decoded and checked.
 *
 * In: `rows` bodies in `text`, back to back; ends says where each ends; format WEIR_JSON or WEIR_MSGPACK. rows_max is the room for
 * rows in ends, status, columns and body_ends.
 *
 * Out: status of each row. WEIR_TAKEN: the service's reference takes that body too, with the same result. WEIR_LEFT: this is for
 * the reference, which may take it or has the words for what is wrong; what does not fit the memory is left too. columns (rows, 11)
 * as in the plan's format; bodies, the canonical MessagePack, back to back, body_ends where each ends. ids: 1 + kinds lists of
 * id_bytes bytes each, the event ids and then the ids of each kind; in each list one id of each row, a line feed after it; id_ends
 * are the bytes used of each. A row that is left has columns of 0, an empty body and empty ids. n_left counts those.
 *
 * Where n_indexes is not 0 it is the number of kinds: slots (rows, kinds) are those of the ids in these indexes, -1 for what is not
 * there or is no id; n_missing counts the ids that are not there. Where n_filters is not 0, suspects gets 1 for each row whose event id
 * may be in one of these filters, also by an earlier row, else 0, n_suspects counts those; each is added to the first filter. */
typedef struct {
    uint8_t *text;
    int64_t text_size;
    int64_t *ends;
    int64_t rows;
    int64_t rows_max;
    int64_t format;
    uint8_t *status;
    int64_t *columns;
    uint8_t *bodies;
    int64_t bodies_size;
    int64_t *body_ends;
    uint8_t *ids;
    int64_t id_bytes;
    int64_t *id_ends;
    int64_t n_left;
    uint64_t *indexes;
    int64_t n_indexes;
    int64_t *slots;
    int64_t n_missing;
    uint64_t *filters;
    int64_t n_filters;
    uint8_t *suspects;
    int64_t n_suspects;
} weir_intake_job;

/* Decided transactions to be written down and answered.
 *
 * In, of each of `rows` rows: risk, finite; its canonical body, body_ends as above; its event id, a line feed after it; the number
 * of its class. Row i has the LSN first_lsn + i. Each of n_classes classes is three texts of `parts`, part_ends (n_classes, 3) says
 * where each ends: the outcome's MessagePack after the score, the reply's JSON between score and LSN, and that after the LSN.
 * rows_max is the room for rows in stored_ends and reply_ends.
 *
 * Out: entries as they follow the head of a journal block (docs/reference/journal.md), entries_end bytes; stored, the record of each decision,
 * and replies, the JSON of each and then the byte `separator`, with the ends of each. After a failure they hold anything. */
typedef struct {
    int64_t rows;
    int64_t rows_max;
    int64_t first_lsn;
    float *risk;
    uint8_t *bodies;
    int64_t bodies_size;
    int64_t *body_ends;
    uint8_t *event_ids;
    int64_t event_ids_size;
    uint8_t *classes;
    int64_t n_classes;
    uint8_t *parts;
    int64_t parts_size;
    int64_t *part_ends;
    int64_t separator;
    uint8_t *entries;
    int64_t entries_size;
    int64_t entries_end;
    uint8_t *stored;
    int64_t stored_size;
    int64_t *stored_ends;
    uint8_t *replies;
    int64_t replies_size;
    int64_t *reply_ends;
} weir_encode_job;

/* Bodies taken as far as they go without anybody: decoded and looked up, scored, encoded.
 *
 * In: the LSN of the first row; times between earliest and latest are surely not refused; a row whose score is below `below` is surely
 * approved, which is the first class of the weir_encode_job.
 *
 * Out: stage. WEIR_EXPRESS_TAKEN: as after weir_intake, and a row was left, or misses a profile, or may be known, or its time is not within
 * bounds; no profile has changed. WEIR_EXPRESS_SCORED: as after weir_score with WEIR_ADVANCE, WEIR_RISK and WEIR_UNDO, and a score is not
 * low enough. WEIR_EXPRESS_ENCODED: as after weir_encode. last_ts is the latest time of a row, from WEIR_EXPRESS_SCORED on; took the
 * nanoseconds of decoding, looking up, scoring and encoding. */
typedef struct {
    int64_t first_lsn;
    int64_t earliest;
    int64_t latest;
    double below;
    int64_t stage;
    int64_t last_ts;
    int64_t took[4];
} weir_express_job;

/* Blocks of the journal (docs/reference/journal.md) as rows of the ledger.
 *
 * In: blocks_size bytes from the start of a block on, the LSN before that block; rows up to from_lsn are in the ledger already; blocks
 * that end above to_lsn are not wanted. rows_max: once there are rows, no block is taken that would make them more.
 *
 * Out: `rows` tuples of COPY weir_ledger FROM STDIN (FORMAT binary), out_end bytes, without header and trailer: the columns from lsn to
 * tx. They are of whole blocks, `taken` bytes of them, the last of which ends with before_lsn: the next call goes on from there. */
typedef struct {
    uint8_t *blocks;
    int64_t blocks_size;
    int64_t before_lsn;
    int64_t from_lsn;
    int64_t to_lsn;
    int64_t rows_max;
    uint8_t *out;
    int64_t out_size;
    int64_t out_end;
    int64_t rows;
    int64_t taken;
    int64_t state;
} weir_ledger_job;

int32_t weir_abi_version(void);

/* The message of this thread's last failure, cut to size - 1 bytes and ended by a zero. Returns the bytes of the whole. */
int64_t weir_last_error(char *buffer, int64_t size);

/* Open libonnxruntime; the same path again does nothing. */
int32_t weir_open_runtime(char *path);

/* Its version as text, cut to size - 1 bytes. */
int32_t weir_runtime_version(char *buffer, int64_t size);

int32_t weir_plan_load(uint8_t *data, int64_t size, uint64_t *plan);
int32_t weir_plan_close(uint64_t plan);

/* features: the width of the vectors that the model scores; 0 loads any model, for weir_infer. */
int32_t weir_model_load(uint8_t *data, int64_t size, int64_t features, uint64_t *model);
int32_t weir_model_close(uint64_t model);

/* Inputs and outputs as JSON: {"inputs": [{"name", "element_type", "shape"}], "outputs": [...]}; -1 is a free dimension.
 * written gets the bytes of the whole; WEIR_BAD_ARGUMENT if they are more than size. */
int32_t weir_model_describe(uint64_t model, char *buffer, int64_t size, int64_t *written);

int32_t weir_bind(uint64_t plan, weir_arena *arena, uint64_t *handle);

/* WEIR_BUSY while a call works on it. From then on nothing reads or writes its memory. */
int32_t weir_unbind(uint64_t arena);

/* Rows [first, first + n) of the arena, in order. model may be 0 unless WEIR_RISK is asked for. */
int32_t weir_score(uint64_t model, uint64_t arena, int64_t first, int64_t n, uint32_t flags);

/* The same on a thread of the core: returns at once, adds 1 to event_fd when done (a duplicate of it: the caller may close its
 * own). weir_collect then gives the status; WEIR_BUSY if it still runs. */
int32_t weir_submit(uint64_t model, uint64_t arena, int64_t first, int64_t n, uint32_t flags, int32_t event_fd);
int32_t weir_collect(uint64_t arena);

/* Restore the profiles as they were before the last run with WEIR_UNDO, however far that came; nobody may have changed them since.
 * Nothing changes where that run did not begin with a row of this LSN, or was taken back before. */
int32_t weir_undo(uint64_t arena, int64_t lsn);

/* Add delta (1 or -1) frauds to the tile of ts in the profile in slot. changed gets 1, or 0 if the profile has lsn already. */
int32_t weir_label(uint64_t arena, int64_t kind, int64_t slot, int64_t ts, int64_t delta, int64_t lsn, int32_t *changed);

/* Join two profiles of one entity, each of size bytes, into out, which may not overlap them. */
int32_t weir_merge(uint64_t plan, int64_t kind, uint8_t *left, uint8_t *right, uint8_t *out, int64_t size);

/* Numbers for ids; it forgets them all once a kind has more than `ids`. */
int32_t weir_replay_open(uint64_t plan, int64_t ids, uint64_t *replay);
int32_t weir_replay_close(uint64_t replay);

/* state gets WEIR_REPLAY_MORE where a block is not all there, or is none; WEIR_REPLAY_FULL where there is no room for the next
 * entry, WEIR_REPLAY_BEYOND where it is above to_lsn, WEIR_REPLAY_LEFT where it cannot be taken here. */
int32_t weir_replay(uint64_t replay, uint64_t arena, weir_replay_job *job);

/* An index of the ids of one kind: id to slot and back. One call at a time, and none while weir_intake reads it.
 *
 * weir_index_put: n ids, a line feed after each, get these slots; WEIR_BAD_ARGUMENT if one is empty or has a slot, or its slot an id;
 * those before it are put. weir_index_find: slots of n ids, a line feed after each, -1 for what is not there. weir_index_ids: the ids
 * in n slots, a line feed after each, empty where nobody is; `written` gets the bytes of the whole, WEIR_BAD_ARGUMENT if they are more
 * than size. weir_index_remove: the same, and takes them out, none of them where there is no room; WEIR_BAD_ARGUMENT if nobody has a
 * slot; those before it are out. */
int32_t weir_index_open(uint64_t *index);
int32_t weir_index_close(uint64_t index);
int32_t weir_index_put(uint64_t index, uint8_t *ids, int64_t size, int64_t *slots, int64_t n);
int32_t weir_index_remove(uint64_t index, int64_t *slots, int64_t n, uint8_t *ids, int64_t size, int64_t *written);
int32_t weir_index_find(uint64_t index, uint8_t *ids, int64_t size, int64_t *slots, int64_t n);
int32_t weir_index_ids(uint64_t index, int64_t *slots, int64_t n, uint8_t *ids, int64_t size, int64_t *written);

/* A Bloom filter: a key that was added is found, of others at most a share of fpp once it holds `keys` of them. One call at a time, and
 * none while weir_intake reads it. weir_filter_find: found gets 1 for each of n keys, a line feed after each, that may be in one of
 * n_filters filters, else 0; with add they are added to the first. bytes gets the memory of its bits. */
int32_t weir_filter_open(int64_t keys, double fpp, uint64_t *filter, int64_t *bytes);
int32_t weir_filter_close(uint64_t filter);
int32_t weir_filter_find(uint64_t *filters, int64_t n_filters, uint8_t *keys, int64_t size, uint8_t *found, int64_t n, int32_t add);

/* Bodies to columns; keeps nothing. The first failure in its arguments leaves all of the memory as it is. */
int32_t weir_intake(uint64_t plan, weir_intake_job *job);

/* The bytes of decided transactions; keeps nothing. WEIR_BAD_ARGUMENT if they do not fit. */
int32_t weir_encode(weir_encode_job *job);

/* Bodies to the bytes of decided transactions in one call, in an arena of the same plan, as far as it goes: see weir_express_job. At most 256
 * rows, with indexes. Of the weir_encode_job the classes and the memory for what comes out are read, of its rows nothing. After a failure
 * whose stage is WEIR_EXPRESS_SCORED profiles may have changed: see weir_undo. */
int32_t weir_express(uint64_t plan, uint64_t model, uint64_t arena, weir_intake_job *take, weir_encode_job *encode, weir_express_job *job);

/* Blocks to rows; keeps nothing. state gets WEIR_LEDGER_MORE where a block is not all there, or is none; WEIR_LEDGER_FULL where there is
 * no room for the next one, WEIR_LEDGER_BEYOND where it ends above to_lsn, WEIR_LEDGER_LEFT where it is damaged, or holds anything that
 * is no row. */
int32_t weir_ledger_rows(weir_ledger_job *job);

/* Any model. An output whose n_dimensions is -1 has a shape that only the run can tell: shape has room for 8 dimensions, data
 * for size bytes; n_dimensions, shape and size are filled in. */
int32_t weir_infer(uint64_t model, weir_tensor *inputs, int64_t n_inputs, weir_tensor *outputs, int64_t n_outputs);

/* Panics, to prove that a panic stops here. */
int32_t weir_panic(void);

#endif
