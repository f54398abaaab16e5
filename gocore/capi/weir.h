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

#define WEIR_ABI_VERSION 2

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

/* Add delta (1 or -1) frauds to the tile of ts in the profile in slot. changed gets 1, or 0 if the profile has lsn already. */
int32_t weir_label(uint64_t arena, int64_t kind, int64_t slot, int64_t ts, int64_t delta, int64_t lsn, int32_t *changed);

/* Join two profiles of one entity, each of size bytes, into out, which may not overlap them. */
int32_t weir_merge(uint64_t plan, int64_t kind, uint8_t *left, uint8_t *right, uint8_t *out, int64_t size);

/* Any model. An output whose n_dimensions is -1 has a shape that only the run can tell: shape has room for 8 dimensions, data
 * for size bytes; n_dimensions, shape and size are filled in. */
int32_t weir_infer(uint64_t model, weir_tensor *inputs, int64_t n_inputs, weir_tensor *outputs, int64_t n_outputs);

/* Panics, to prove that a panic stops here. */
int32_t weir_panic(void);

#endif
