/* Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
 *
 * libterrace: the C library that inference engines, custom servers and language bindings use to
 * store blocks in a node's `terraced` and to load them back. It speaks the engine socket
 * (docs/engine_protocol.md); bytes travel through shared memory, never through the socket.
 *
 * WORDS
 *   block      immutable bytes (one fixed run of tokens' K and V, all layers), named by a key.
 *   key        32 bytes. Equal keys in one key space mean equal bytes. Never truncated.
 *   key space  who may share and what the bytes mean (tenant, model, layout, rank, hash scheme).
 *   lease      a promise of the daemon that a set of blocks stays where it is. It belongs to this
 *              client's connection: when the client dies, its leases are gone within a second.
 *   ref        where a block lies at the moment; valid while its lease is held. A ref may be sent as
 *              plain bytes to another process of the same tenant (scheduler -> worker).
 *
 * PROMISES
 *   - A load never hands out a wrong byte: identity, generation and checksums are checked on every
 *     byte that is delivered. What does not match is reported (TERRACE_REASON_CORRUPT / _STALE).
 *   - No call blocks longer than its time limit, whatever the daemon does. Only terrace_op_free and
 *     terrace_pages_free wait for as long as somebody may still touch the memory (see "GPU memory").
 *   - The daemon may be absent, killed or restarted at any time: calls answer TERRACE_UNAVAILABLE
 *     at once, the library reconnects by itself (a background thread, first try after 50 ms, then
 *     with back-off up to 1 s) and opens its key spaces again. Refs and leases of the old daemon are
 *     refused as stale.
 *
 * THREADS
 *   Every function may be called from any thread at any time, except that *_close / *_free of an
 *   object must not race with another call on that object. The library owns `copy_threads` copy
 *   threads and two background threads; none of them calls back into the caller.
 *
 * FORK
 *   A client does not survive fork(): in the child every call answers TERRACE_FAILED_PRECONDITION
 *   and touches nothing. Connect anew in the child. The cache's memory is not mapped there: views of the
 *   parent must not be read.
 */
#ifndef TERRACE_TERRACE_H_
#define TERRACE_TERRACE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 3 adds to 2, and changes nothing of it: terrace_device_pages_register, terrace_shared_pages_register,
 * terrace_pages_copier, terrace_op_planes_done, terrace_op_wait_planes. */
#define TERRACE_API_VERSION 3
#define TERRACE_KEY_BYTES 32
#define TERRACE_REF_BYTES 48
#if defined(__GNUC__)
#define TERRACE_EXPORT __attribute__((visibility("default")))
#else
#define TERRACE_EXPORT
#endif

/* Outcome of a call. Numbers equal gRPC's canonical codes. A miss is not an error. */
typedef enum terrace_status {
  TERRACE_OK = 0,
  TERRACE_INVALID_ARGUMENT = 3,    /* the caller's fault; terrace_error_text() says what to change */
  TERRACE_DEADLINE_EXCEEDED = 4,   /* not finished within the time limit; it may still finish */
  TERRACE_NOT_FOUND = 5,           /* a named thing (lease) does not exist: released, expired, forged */
  TERRACE_PERMISSION_DENIED = 7,   /* tenant, token or peer identity refused */
  TERRACE_RESOURCE_EXHAUSTED = 8,  /* a limit is reached; try later or raise it */
  TERRACE_FAILED_PRECONDITION = 9, /* wrong state: after fork, closed, protocol version refused */
  TERRACE_INTERNAL = 13,           /* a bug */
  TERRACE_UNAVAILABLE = 14,        /* no daemon at the moment; go on without it */
  TERRACE_DATA_LOSS = 15           /* some blocks of a load failed their checks; see the reasons */
} terrace_status;

/* Why a block was not served or not stored: one closed list for C, gRPC, metrics and terracectl. */
typedef enum terrace_reason {
  TERRACE_REASON_NONE = 0,            /* served / stored */
  TERRACE_REASON_COLD = 1,            /* never stored here (or too long ago to remember) */
  TERRACE_REASON_EVICTED = 2,         /* was here, went to make room */
  TERRACE_REASON_CORRUPT = 3,         /* failed its checksum or identity check and was dropped */
  TERRACE_REASON_FLUSHED = 4,         /* an operator flushed it */
  TERRACE_REASON_KEY_SPACE_EMPTY = 5, /* nothing was ever stored in this key space */
  TERRACE_REASON_MODEL_DIFFERS = 6,   /* only other weights or another model of this shape are here */
  TERRACE_REASON_LAYOUT_DIFFERS = 7,  /* the same model is here in another layout, dtype or rank shape */
  TERRACE_REASON_HASH_DIFFERS = 8,    /* the same model and layout are here under another hash or seed */
  TERRACE_REASON_AFTER_MISS = 9,      /* lies behind the first miss of its chain, so of no use */
  TERRACE_REASON_PENDING = 10,        /* on its way from a lower tier or a peer */
  TERRACE_REASON_LEASE_LIMIT = 11,    /* here, but too much is leased already */
  TERRACE_REASON_STALE = 12,          /* the ref's lease ended and the frame was reused */
  TERRACE_REASON_UNAVAILABLE = 13,    /* no daemon, no answer in time, or the pages' GPU is out of service */
  TERRACE_REASON_DUPLICATE = 14,      /* store: already there, first writer won; nothing was written */
  TERRACE_REASON_BUDGET = 15,         /* store: no room and nothing may be evicted */
  TERRACE_REASON_BAD_CHECKSUM = 16,   /* store: the bytes did not match the client's checksum */
  TERRACE_REASON_OVERLOAD = 17,       /* store: the queue is full; lookup: too much is on its way already;
                                       * the pages' GPU takes no more copies, or has no memory */
  TERRACE_REASON_CANCELLED = 18,      /* the client closed or the operation was dropped */
  TERRACE_REASON_RECOMPUTE = 19,      /* here, but loading it would take longer than computing it again */
  TERRACE_REASON_DEADLINE = 20,       /* on a lower tier, or copied by a GPU, that was not in time */
  TERRACE_REASON_TIER_OFFLINE = 21,   /* on a tier that is out of service or still recovers, or it may be */
  TERRACE_REASON_IO_ERROR = 22,       /* a lower tier reported an error when it was read; dropped there */
  TERRACE_REASON_COUNT = 23
} terrace_reason;

TERRACE_EXPORT const char* terrace_version(void);               /* "0.1.0" */
TERRACE_EXPORT const char* terrace_status_name(terrace_status); /* "UNAVAILABLE" */
TERRACE_EXPORT const char* terrace_reason_name(terrace_reason); /* "evicted": as in metrics */
/* What went wrong in the calling thread's last failed call and what to do about it. Never NULL;
 * valid until the thread's next call into the library. */
TERRACE_EXPORT const char* terrace_error_text(void);

/* ---------------------------------------------------------------- client */

typedef struct terrace_client terrace_client;

typedef struct terrace_options {
  size_t struct_bytes;       /* sizeof(terrace_options) */
  const char* socket_path;   /* engine socket; NULL: $TERRACE_SOCKET, else /run/terrace/engine.sock */
  const char* tenant;        /* NULL: "default" */
  const char* token;         /* NULL: none. Needed when the tenant is configured with one */
  const char* client_name;   /* shown by `terracectl status`; NULL: the process name */
  uint32_t copy_threads;     /* 0: 1 thread on up to 2 cores, else 2. At most 16 */
  uint32_t request_timeout_ms; /* 0: 1000. Longest wait of a call that takes no own time limit */
  uint64_t staging_bytes;    /* shared memory for stores; 0: the daemon's default. Charged to its budget */
  uint32_t load_timeout_ms;  /* 0: 30000. Longest wait of a load for blocks that are on their way (PENDING);
                              * what has not arrived by then fails with REASON_DEADLINE */
} terrace_options;

/* Makes a client. With valid options *client is set even when no daemon answers yet: the result is
 * then TERRACE_UNAVAILABLE and the library goes on connecting in the background.
 * On any other error *client is NULL. */
TERRACE_EXPORT terrace_status terrace_connect(const terrace_options* options, terrace_client** client);
/* Waits until the client is connected, at most timeout_ms. OK or UNAVAILABLE (text says why) or
 * PERMISSION_DENIED / FAILED_PRECONDITION when the daemon refused this client for good. */
TERRACE_EXPORT terrace_status terrace_wait_ready(terrace_client*, uint32_t timeout_ms);
/* 1 connected, 0 not. Costs nothing; never blocks. */
TERRACE_EXPORT int terrace_is_ready(terrace_client*);
/* Ends everything: operations in flight end as CANCELLED, leases are released. Key spaces, pages and
 * operations of this client must not be used any more (their *_free may still be called). */
TERRACE_EXPORT void terrace_close(terrace_client*);

/* ---------------------------------------------------------------- key space */

typedef struct terrace_keyspace terrace_keyspace;

/* Two clients share blocks exactly when all fields below (and the tenant) are equal. Fields are
 * compared byte for byte; put everything into them that changes the meaning of a block's bytes.
 * Each text is UTF-8, at most 1024 bytes; NULL counts as "". */
typedef struct terrace_keyspace_desc {
  size_t struct_bytes;           /* sizeof(terrace_keyspace_desc) */
  const char* model;             /* name for humans, e.g. "meta-llama/Llama-3-8B" */
  const char* model_fingerprint; /* digest over config and weights: same path, new weights, new value */
  const char* kv_dtype;          /* "bfloat16", "fp8_e4m3", ... */
  const char* layout;            /* computed from the live tensors: shapes, strides, block size, ISA */
  const char* parallel;          /* "tp=2/0 pp=1/0": shape and this rank */
  const char* hash;              /* hash algorithm and digest of its seed (NONE_HASH) */
  const char* group;             /* KV-cache group, e.g. "0:full" or "1:sliding:1024" */
  const char* extra;             /* anything else, e.g. "vllm 0.32.0" where versions differ in bytes */
  uint64_t block_bytes;          /* bytes of one block, 1 .. 1 GiB */
  uint32_t tokens_per_block;     /* for token counts in metrics; may be 0 */
  uint32_t block_class;          /* TERRACE_CLASS_*: whose floor of the daemon's budget protects it */
} terrace_keyspace_desc;

enum { TERRACE_CLASS_KV = 0, TERRACE_CLASS_SHARD = 1 };

/* Opens (or makes) a key space. Like terrace_connect it succeeds lazily: with a valid description
 * *keyspace is set even when the result is UNAVAILABLE, and is opened once the daemon is there. */
TERRACE_EXPORT terrace_status terrace_keyspace_open(terrace_client*, const terrace_keyspace_desc*,
                                                    terrace_keyspace** keyspace);
/* The daemon's 32-byte digest over tenant and description. UNAVAILABLE before the first opening. */
TERRACE_EXPORT terrace_status terrace_keyspace_digest(terrace_keyspace*, uint8_t digest[32]);
TERRACE_EXPORT void terrace_keyspace_free(terrace_keyspace*);

/* ---------------------------------------------------------------- pages: the engine's own memory */

typedef struct terrace_pages terrace_pages;

/* One plane = one array of equal pieces in this process's memory, e.g. one layer's KV cache.
 * Block number b has its piece of this plane at base + b * stride, `bytes` long. The payload of
 * block b is the concatenation of its pieces over all planes in the given order. */
typedef struct terrace_plane {
  void* base;
  uint64_t stride; /* bytes from one block to the next; >= bytes */
  uint64_t bytes;  /* bytes of one block in this plane; > 0 */
} terrace_plane;

/* The memory must stay mapped until terrace_pages_free (which waits for copies that use it, and for the daemon to
 * let go of memory that it has opened, at most request_timeout_ms). */
TERRACE_EXPORT terrace_status terrace_pages_register(terrace_client*, const terrace_plane* planes,
                                                     uint32_t n_planes, uint64_t n_blocks,
                                                     terrace_pages** pages);
TERRACE_EXPORT void terrace_pages_free(terrace_pages*);

/* ---- GPU memory, or host memory that the daemon is to copy by itself ----
 *
 * Pages that the daemon copies are written and read by another process. An operation on them is therefore in its
 * final state only when that is over: the daemon has answered, or it has closed the connection, as it does after
 * its last copy, or it is dead. When it does not answer, nor signs of life, for about twice the longer of 2 s and
 * request_timeout_ms, the library closes the connection, after which the daemon begins no more copies and publishes
 * nothing it has read; the operation ends as UNAVAILABLE when the daemon confirms that. A daemon that is frozen
 * (SIGSTOP, a frozen cgroup) confirms nothing: until it goes on or is killed, such an operation stays undone,
 * terrace_op_wait answers DEADLINE_EXCEEDED, and terrace_op_free and terrace_pages_free wait. Until then its pages
 * must not be used for anything else. terrace_close waits 2 s for the daemon's word and then ends the operations as
 * CANCELLED: keep the memory away from other use if the process goes on with such a daemon beside it.
 * The same holds for copies of a GPU that hangs.
 *
 * In one load no two blocks may go to one block number (INVALID_ARGUMENT). */

enum {
  /* Do not let the daemon copy: this library copies, through `stream` and pinned memory of its own. For
   * engines whose memory must not be exported. */
  TERRACE_PAGES_NO_EXPORT = 1,
};

typedef struct terrace_device_pages {
  size_t struct_bytes;         /* sizeof(terrace_device_pages) */
  const terrace_plane* planes; /* device addresses, in the order in which the engine needs them */
  uint32_t n_planes;           /* up to 4096 */
  uint32_t flags;              /* TERRACE_PAGES_* */
  uint64_t n_blocks;
  /* CUstream / cudaStream_t of the engine. A load or store of these pages is ordered behind all work that the
   * stream holds when it is called: a store sees what was computed, a load overwrites nothing that is still
   * read. NULL: the legacy default stream. Must live until terrace_pages_free. */
  void* stream;
} terrace_device_pages;

/* The planes are GPU memory of one device, made by cudaMalloc (exported by a CUDA IPC handle), by the VMM API
 * with POSIX-descriptor handles (PyTorch's expandable segments), or by neither (copied by this library). A
 * daemon that can reach the device opens the memory once and copies by itself; otherwise, and until it has,
 * TERRACE_PAGES_NO_EXPORT's way is taken. The calling thread's current context must be that of the memory.
 * Loads and stores are those of other pages: terrace_load, terrace_store (not the *_pieces ones).
 * FAILED_PRECONDITION: no driver here, or a library built without CUDA. INVALID_ARGUMENT: not GPU memory, of
 * several devices, or outside of its allocation. Of memory in VMM pieces 250 can be exported at most; more are
 * copied by this library. A load or store records an event on the stream, so it must not be called while the
 * stream is being captured into a graph. Errors of the GPU: UNAVAILABLE, with the driver's word for it; one that
 * leaves the context of no use is answered from then on without calling the driver again. Call
 * terrace_pages_free before the memory is freed and before the context is destroyed. */
TERRACE_EXPORT terrace_status terrace_device_pages_register(terrace_client*, const terrace_device_pages*,
                                                            terrace_pages** pages);

/* The same for host memory in files: planes lie in [base, base + bytes) of mappings of descriptors that are
 * sealed against shrinking (memfd). The daemon maps and copies by itself; the engine's processors do nothing.
 * Memory of the files that was not touched yet is taken now (fallocate), which may take a second for 5 GiB. */
typedef struct terrace_shared_memory {
  int fd;         /* borrowed */
  void* base;     /* where offset 0 of the file is mapped in this process */
  uint64_t bytes; /* of the file */
} terrace_shared_memory;
TERRACE_EXPORT terrace_status terrace_shared_pages_register(terrace_client*, const terrace_shared_memory* memory,
                                                            uint32_t n_memory, const terrace_plane* planes,
                                                            uint32_t n_planes, uint64_t n_blocks,
                                                            terrace_pages** pages);

typedef enum terrace_copier {
  TERRACE_COPIER_LIBRARY = 0,       /* processors of this process (terrace_pages_register) */
  TERRACE_COPIER_DAEMON = 1,        /* the daemon, from and to this memory */
  TERRACE_COPIER_LIBRARY_STREAM = 2 /* this library, through the engine's stream and pinned memory */
} terrace_copier;
/* Who copies these pages at the moment; *text (may be NULL) says why not the daemon, valid until the thread's
 * next call. */
TERRACE_EXPORT terrace_copier terrace_pages_copier(terrace_pages*, const char** text);

/* A scatter list for memory that has no regular shape: the payload of one block is the
 * concatenation of its `n` pieces; their lengths must add up to the key space's block_bytes. */
typedef struct terrace_piece {
  void* base;
  uint64_t bytes;
} terrace_piece;

/* ---------------------------------------------------------------- lookup and lease */

typedef struct terrace_ref {
  uint8_t opaque[TERRACE_REF_BYTES];
} terrace_ref;

enum {
  TERRACE_MODE_PREFIX = 0, /* stop at the first block that is not here */
  TERRACE_MODE_ALL = 1     /* answer for every key (sliding windows, sparse uses) */
};

/* One question: which of these blocks are here? In and out. */
typedef struct terrace_lookup_part {
  terrace_keyspace* keyspace;
  const uint8_t* keys;     /* n_keys * 32 bytes, in chain order (parent first) */
  uint32_t n_keys;         /* 1 .. 1,048,576 */
  uint32_t mode;           /* TERRACE_MODE_* */
  terrace_ref* refs;       /* out, n_keys entries; entries of blocks not here are zero. May be NULL */
  uint8_t* reasons;        /* out, n_keys terrace_reason values (0 = here). May be NULL */
  uint32_t n_prefix;       /* out: length of the leading run that is here or pending */
  uint32_t n_here;         /* out: blocks that are here or pending (PREFIX: equals n_prefix) */
  uint64_t lease;          /* out: 0 if nothing is here or no lease was asked for */
  uint32_t n_pending;      /* out: of n_here, those on their way from a lower tier */
  uint32_t recompute_ns_per_token; /* in: what computing a token again costs the caller; 0: not said.
                              A block whose load would take longer is a miss (REASON_RECOMPUTE) */
} terrace_lookup_part;

enum {
  TERRACE_LOOKUP_NO_LEASE = 1, /* only ask; refs are then not filled */
  /* Also take blocks that lie on a lower tier: their loading starts now, they are answered as
   * REASON_PENDING with a valid ref, and count as here. terrace_load waits for them, block by block,
   * in the order of the chain; what does not arrive fails with its reason (DEADLINE, IO_ERROR, ...).
   * Without it, and with TERRACE_LOOKUP_NO_LEASE, such blocks are misses (REASON_PENDING). */
  TERRACE_LOOKUP_MAY_WAIT = 2
};

/* Lookup and lease in one step and one round trip, for all parts together. When the daemon is not
 * there or does not answer within timeout_us the result is UNAVAILABLE / DEADLINE_EXCEEDED, all
 * counts are 0 and every reason is TERRACE_REASON_UNAVAILABLE; a late answer's leases are given back
 * by the library. timeout_us 0: the client's request_timeout_ms. */
TERRACE_EXPORT terrace_status terrace_lookup(terrace_client*, terrace_lookup_part* parts,
                                             uint32_t n_parts, uint32_t flags, uint32_t timeout_us);

/* Ends a lease. Does not wait for the daemon. Only the id is needed; 0 is ignored. */
TERRACE_EXPORT terrace_status terrace_release(terrace_client*, uint64_t lease);
/* The same, but waits for the daemon's word: NOT_FOUND for a lease that is not this client's (any
 * more). For tests and for callers who want to know. */
TERRACE_EXPORT terrace_status terrace_release_sync(terrace_client*, uint64_t lease);

/* ---------------------------------------------------------------- load and store */

/* A load or store under way. Has exactly one final state; must be freed by the caller. */
typedef struct terrace_op terrace_op;

/* Copies n blocks from the cache to block numbers block_ids[i] of `pages`, checking identity and
 * checksums on the way. Returns at once. refs[i] must be a ref for keys[i] under a lease that lasts
 * until the operation is done; the lease may belong to another process of the tenant. Pages of a
 * block whose reason is not NONE hold undefined bytes. */
TERRACE_EXPORT terrace_status terrace_load(terrace_client*, terrace_keyspace*, const terrace_ref* refs,
                                           const uint8_t* keys, uint32_t n, terrace_pages* pages,
                                           const uint64_t* block_ids, terrace_op** op);
/* The same into scatter lists: block i takes piece_counts[i] consecutive entries of `pieces`. The
 * lists are copied; the memory they name must stay until the operation is done. */
TERRACE_EXPORT terrace_status terrace_load_pieces(terrace_client*, terrace_keyspace*,
                                                  const terrace_ref* refs, const uint8_t* keys,
                                                  uint32_t n, const terrace_piece* pieces,
                                                  const uint32_t* piece_counts, terrace_op** op);

enum {
  TERRACE_STORE_CHAIN = 0,      /* keys[0]'s parent is parent_key (NULL: none), keys[i]'s is keys[i-1] */
  TERRACE_STORE_INDEPENDENT = 1 /* no block has a parent */
};

/* What a client knows of the future of blocks: advice to the daemon, never a promise of it. Everything
 * ends after an hour at most. A zeroed struct says nothing. */
typedef struct terrace_retention {
  uint32_t reuse_after_ms; /* expected next use, from now; 0: unknown */
  uint32_t pin_ms;         /* not to be evicted for so long; counts against the tenant's share of pins */
  uint8_t done;            /* 1: will not be used again: goes first */
  uint8_t priority;        /* 0 ordinary .. 7: rather keep it than others */
} terrace_retention;

/* Gives hints for blocks that are here (others are ignored). keys: in chain order. Does not wait for the
 * daemon. */
TERRACE_EXPORT terrace_status terrace_hint(terrace_client*, terrace_keyspace*, const uint8_t* keys,
                                           uint32_t n, const terrace_retention* retention);

/* Stores n blocks. retention may be NULL. Returns at once. The source pages must not change until the
 * operation is done or terrace_op_sources_read() says so. Blocks already there are not copied (reason
 * DUPLICATE). A block is visible to others once its reason is NONE or DUPLICATE. Other reasons mean: not
 * stored. */
TERRACE_EXPORT terrace_status terrace_store(terrace_client*, terrace_keyspace*,
                                            const uint8_t* parent_key, const uint8_t* keys, uint32_t n,
                                            uint32_t flags, const terrace_retention* retention,
                                            terrace_pages* pages, const uint64_t* block_ids,
                                            terrace_op** op);
TERRACE_EXPORT terrace_status terrace_store_pieces(terrace_client*, terrace_keyspace*,
                                                   const uint8_t* parent_key, const uint8_t* keys,
                                                   uint32_t n, uint32_t flags,
                                                   const terrace_retention* retention,
                                                   const terrace_piece* pieces,
                                                   const uint32_t* piece_counts, terrace_op** op);

/* 1 when the operation is in its final state. Never blocks. */
TERRACE_EXPORT int terrace_op_done(const terrace_op*);
/* 1 when a store has read all its sources (they may be overwritten now). Never blocks. */
TERRACE_EXPORT int terrace_op_sources_read(const terrace_op*);
/* Waits up to timeout_us. OK: done, all blocks fine (DUPLICATE counts as fine for stores).
 * DATA_LOSS: done, some blocks have a reason. DEADLINE_EXCEEDED: not done yet. */
TERRACE_EXPORT terrace_status terrace_op_wait(terrace_op*, uint32_t timeout_us);
/* Loads: how many leading planes of all blocks are there and checked; the engine may use them while the
 * rest comes. All of them when the operation is done and no block has failed; never all when one has. Pages
 * that this library copies by processors come as a whole. Never blocks. */
TERRACE_EXPORT uint32_t terrace_op_planes_done(const terrace_op*);
/* Waits up to timeout_us until planes_done >= n_planes (OK) or the operation is done without (DATA_LOSS). */
TERRACE_EXPORT terrace_status terrace_op_wait_planes(terrace_op*, uint32_t n_planes, uint32_t timeout_us);
/* Waits up to timeout_us for terrace_op_sources_read. OK or DEADLINE_EXCEEDED. */
TERRACE_EXPORT terrace_status terrace_op_wait_sources(terrace_op*, uint32_t timeout_us);
/* One reason per block, in the order of the call. REQUIRES: done. Valid until terrace_op_free. */
TERRACE_EXPORT const uint8_t* terrace_op_reasons(const terrace_op*, uint32_t* n);
/* Frees the operation. If it still runs, waits until its memory is not touched any more (above: GPU memory). */
TERRACE_EXPORT void terrace_op_free(terrace_op*);

/* ---------------------------------------------------------------- zero-copy view */

/* Checks the block in place (identity, checksums) and returns a pointer into the read-only mapping.
 * The bytes stay while the lease is held. A reader that may outlive its lease (a paused process)
 * asks terrace_view_valid after its last use and throws its work away on 0. Memory that was viewed
 * stays mapped until terrace_close, also when the daemon has given it up or was restarted.
 * A block that was PENDING is waited for, at most request_timeout_ms; terrace_view_valid knows only refs
 * that were not. *reason says why when the status is DATA_LOSS. */
TERRACE_EXPORT terrace_status terrace_view(terrace_client*, terrace_keyspace*, const terrace_ref* ref,
                                           const uint8_t key[32], const void** data, uint64_t* bytes,
                                           terrace_reason* reason);
TERRACE_EXPORT int terrace_view_valid(terrace_client*, const terrace_ref* ref);

/* ---------------------------------------------------------------- statistics */

typedef struct terrace_client_stats {
  size_t struct_bytes;          /* set by the caller: sizeof(terrace_client_stats) */
  uint64_t connects;            /* successful connections so far (1 = never reconnected) */
  uint64_t lookups, lookup_blocks, hit_blocks;
  uint64_t load_blocks, load_bytes, load_failed_blocks;
  uint64_t store_blocks, store_bytes, store_duplicate_blocks, store_failed_blocks;
  uint64_t reasons[32];         /* blocks not served or stored, by terrace_reason */
} terrace_client_stats;

TERRACE_EXPORT terrace_status terrace_get_stats(terrace_client*, terrace_client_stats*);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* TERRACE_TERRACE_H_ */
