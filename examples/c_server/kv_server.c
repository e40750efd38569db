/* Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
 *
 * The skeleton of a custom inference server that keeps its KV blocks in Terrace, in C over
 * libterrace. Bytes travel through shared memory: this is the door for a server on the same
 * machine.
 *
 *   cc kv_server.c -o kv_server $(pkg-config --cflags --libs terrace libcrypto)
 *   ./kv_server --socket /run/terrace/engine.sock --blocks 16
 *
 * For a prompt it looks up the longest prefix whose blocks are in the cache, loads these,
 * "computes" the rest and stores what it computed. The program runs itself twice: the second
 * process loads what the first one computed and compares it. Where it makes up a block's bytes from
 * its key, yours runs the model. Exit code 0: the second process got every block, byte for byte.
 */
#include <openssl/evp.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <terrace.h>

#define TOKENS_PER_BLOCK 16
#define BLOCKS_MAX 65536

extern char** environ;

typedef struct options {
  const char* socket_path;
  const char* tenant;
  const char* token;
  const char* role; /* "both", "first" or "second" */
  unsigned prompt;  /* a number that stands for a prompt */
  uint32_t blocks;
  uint64_t block_bytes;
} options;

static void die(const char* what) {
  fprintf(stderr, "kv_server: %s\n", what);
  exit(2);
}

/* The library's text says what went wrong and what to do about it. */
static void check(terrace_status status, const char* what) {
  if (status == TERRACE_OK) return;
  fprintf(stderr, "kv_server: %s: %s: %s\n", what, terrace_status_name(status),
          terrace_error_text());
  exit(2);
}

/* One key per block: hash of the parent's key and the block's tokens. Equal keys must mean equal
 * bytes, so everything that changes a block's bytes goes either in here (tokens, adapters, images)
 * or into the key space (model, layout, dtype). */
static void chain_keys(unsigned prompt, uint8_t (*keys)[TERRACE_KEY_BYTES], uint32_t n) {
  uint8_t parent[TERRACE_KEY_BYTES] = {0};
  EVP_MD_CTX* hash = EVP_MD_CTX_new();
  for (uint32_t block = 0; block < n; ++block) {
    if (!EVP_DigestInit_ex(hash, EVP_sha256(), NULL)) die("SHA-256 is missing");
    EVP_DigestUpdate(hash, parent, sizeof(parent));
    for (uint32_t i = 0; i < TOKENS_PER_BLOCK; ++i) {
      char token[32];
      const unsigned long long number =
          prompt * 1000003ull + (unsigned long long)block * TOKENS_PER_BLOCK + i;
      const int length = snprintf(token, sizeof(token), i == 0 ? "%llu" : ",%llu", number);
      EVP_DigestUpdate(hash, token, (size_t)length);
    }
    EVP_DigestFinal_ex(hash, keys[block], NULL);
    memcpy(parent, keys[block], sizeof(parent));
  }
  EVP_MD_CTX_free(hash);
}

/* Stands for the model: the KV bytes of one block. Derived from the key, so that anyone can check.
 */
static void compute(const uint8_t* key, uint8_t* block, uint64_t bytes) {
  EVP_MD_CTX* hash = EVP_MD_CTX_new();
  if (!EVP_DigestInit_ex(hash, EVP_shake256(), NULL)) die("SHAKE-256 is missing");
  EVP_DigestUpdate(hash, key, TERRACE_KEY_BYTES);
  EVP_DigestFinalXOF(hash, block, bytes);
  EVP_MD_CTX_free(hash);
}

/* Loads the first n blocks of the chain into the pages. Returns how many came without a gap: a
 * block that could not be loaded (flushed meanwhile, found damaged) is computed like one that was
 * not there. */
static uint32_t load(terrace_client* client, terrace_keyspace* space, terrace_pages* pages,
                     const terrace_ref* refs, const uint8_t* keys, const uint64_t* ids,
                     uint32_t n) {
  terrace_op* op = NULL;
  check(terrace_load(client, space, refs, keys, n, pages, ids, &op), "load");
  /* A real server would poll terrace_op_done() between two steps of the model. */
  const terrace_status status = terrace_op_wait(op, 60u * 1000 * 1000);
  if (status != TERRACE_OK && status != TERRACE_DATA_LOSS) check(status, "wait for load");
  uint32_t n_reasons = 0, n_loaded = 0;
  const uint8_t* reasons = terrace_op_reasons(op, &n_reasons);
  while (n_loaded < n_reasons && reasons[n_loaded] == TERRACE_REASON_NONE) ++n_loaded;
  terrace_op_free(op);
  return n_loaded;
}

/* Stores n blocks of the chain. Returns how many are in the cache now. */
static uint32_t store(terrace_client* client, terrace_keyspace* space, terrace_pages* pages,
                      const uint8_t* parent, const uint8_t* keys, const uint64_t* ids, uint32_t n) {
  terrace_op* op = NULL;
  check(terrace_store(client, space, parent, keys, n, TERRACE_STORE_CHAIN, NULL, pages, ids,
                      &op),
        "store");
  const terrace_status status = terrace_op_wait(op, 60u * 1000 * 1000);
  if (status != TERRACE_OK && status != TERRACE_DATA_LOSS) check(status, "wait for store");
  uint32_t n_reasons = 0, n_stored = 0;
  const uint8_t* reasons = terrace_op_reasons(op, &n_reasons);
  for (uint32_t i = 0; i < n_reasons; ++i) {
    n_stored += reasons[i] == TERRACE_REASON_NONE || reasons[i] == TERRACE_REASON_DUPLICATE;
  }
  terrace_op_free(op);
  return n_stored;
}

/* What the server holds while it runs. */
typedef struct server {
  terrace_client* client;
  terrace_keyspace* space;
  terrace_pages* pages;
  uint8_t* memory; /* KV memory: here one plane with one block after the other. A paged KV cache has
                      one plane a layer, each with its own stride */
  uint64_t* ids;   /* where block i of the prompt goes in that memory */
} server;

static void open_server(const options* o, server* s) {
  const terrace_options connect = {.struct_bytes = sizeof(connect),
                                   .socket_path = o->socket_path,
                                   .tenant = o->tenant,
                                   .token = o->token,
                                   .client_name = "c_server"};
  const terrace_status connected = terrace_connect(&connect, &s->client);
  if (s->client == NULL) check(connected, "connect");
  check(terrace_wait_ready(s->client, 5000), "connect"); /* yours would go on without the cache */

  const terrace_keyspace_desc identity = {.struct_bytes = sizeof(identity),
                                          .model = "example/toy",
                                          .model_fingerprint = "sha256:0",
                                          .kv_dtype = "bytes",
                                          .layout = "flat",
                                          .parallel = "tp=1/0",
                                          .hash = "sha256-chain",
                                          .group = "0:full",
                                          .block_bytes = o->block_bytes,
                                          .tokens_per_block = TOKENS_PER_BLOCK};
  check(terrace_keyspace_open(s->client, &identity, &s->space), "open key space");

  s->memory = malloc(o->blocks * o->block_bytes);
  s->ids = calloc(o->blocks, sizeof(*s->ids));
  if (s->memory == NULL || s->ids == NULL) die("out of memory");
  for (uint32_t i = 0; i < o->blocks; ++i) s->ids[i] = i;
  const terrace_plane plane = {s->memory, o->block_bytes, o->block_bytes};
  check(terrace_pages_register(s->client, &plane, 1, o->blocks, &s->pages), "register pages");
}

static void close_server(server* s) {
  terrace_pages_free(s->pages);
  terrace_keyspace_free(s->space);
  terrace_close(s->client);
  free(s->memory);
  free(s->ids);
}

/* "Computes" what was not loaded. Returns how many of the loaded blocks have wrong bytes. */
static uint32_t compute_rest(const options* o, server* s, uint8_t (*keys)[TERRACE_KEY_BYTES],
                             uint32_t n_loaded) {
  uint32_t n_wrong = 0;
  uint8_t* expected = malloc(o->block_bytes);
  if (expected == NULL) die("out of memory");
  for (uint32_t i = 0; i < o->blocks; ++i) {
    compute(keys[i], expected, o->block_bytes);
    if (i < n_loaded) {
      n_wrong += memcmp(s->memory + i * o->block_bytes, expected, o->block_bytes) != 0;
    } else {
      memcpy(s->memory + i * o->block_bytes, expected, o->block_bytes);
    }
  }
  free(expected);
  return n_wrong;
}

/* Answers one prompt. */
static int serve(const options* o, server* s) {
  uint8_t(*keys)[TERRACE_KEY_BYTES] = calloc(o->blocks, TERRACE_KEY_BYTES);
  terrace_ref* refs = calloc(o->blocks, sizeof(*refs));
  uint8_t* reasons = calloc(o->blocks, 1);
  if (keys == NULL || refs == NULL || reasons == NULL) die("out of memory");
  chain_keys(o->prompt, keys, o->blocks);

  terrace_lookup_part question = {.keyspace = s->space,
                                  .keys = keys[0],
                                  .n_keys = o->blocks,
                                  .mode = TERRACE_MODE_PREFIX,
                                  .refs = refs,
                                  .reasons = reasons};
  /* What lies on a disk is taken too: its loading starts now, and terrace_load waits for it. */
  check(terrace_lookup(s->client, &question, 1, TERRACE_LOOKUP_MAY_WAIT, 0), "lookup");
  uint32_t n_loaded = 0, n_stored = 0;
  if (question.n_prefix > 0) {
    n_loaded = load(s->client, s->space, s->pages, refs, keys[0], s->ids, question.n_prefix);
  }
  terrace_release(s->client, question.lease); /* 0, nothing leased, is fine */

  const uint32_t n_wrong = compute_rest(o, s, keys, n_loaded);
  const uint32_t n_computed = o->blocks - n_loaded;
  if (n_computed > 0) {
    n_stored = store(s->client, s->space, s->pages, n_loaded > 0 ? keys[n_loaded - 1] : NULL,
                     keys[n_loaded], s->ids + n_loaded, n_computed);
  }
  const char* reason = "none";
  if (n_loaded < question.n_prefix) {
    reason = "lost"; /* between lookup and load: flushed by an operator, or found damaged */
  } else if (n_computed > 0) {
    reason = terrace_reason_name((terrace_reason)reasons[n_loaded]);
  }
  printf("%s: blocks=%u loaded=%u computed=%u stored=%u wrong=%u reason=%s\n", o->role, o->blocks,
         n_loaded, n_computed, n_stored, n_wrong, reason);
  free(keys);
  free(refs);
  free(reasons);
  const bool complete =
      strcmp(o->role, "second") == 0 ? n_loaded == o->blocks : n_loaded + n_stored == o->blocks;
  return complete && n_wrong == 0 ? 0 : 1;
}

/* Runs this program again as a process of its own. Not fork() alone: a client does not survive it.
 */
static int run_as(const char* role, int argc, char** argv) {
  char** arguments = calloc((size_t)argc + 3, sizeof(*arguments));
  if (arguments == NULL) die("out of memory");
  memcpy(arguments, argv, (size_t)argc * sizeof(*argv));
  arguments[argc] = "--role";
  arguments[argc + 1] = (char*)role;
  pid_t child = 0;
  int status = 0;
  if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) != 0)
    die("cannot start");
  if (waitpid(child, &status, 0) != child) die("lost the child");
  free(arguments);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

static unsigned long long number(const char* text, unsigned long long max, const char* what) {
  char* end = NULL;
  const unsigned long long value = strtoull(text, &end, 10);
  if (end == text || *end != '\0' || value < 1 || value > max) die(what);
  return value;
}

int main(int argc, char** argv) {
  options o = {NULL, NULL, NULL, "both", 1, 16, 1 << 20};
  for (int i = 1; i < argc; i += 2) {
    const char* value = i + 1 < argc ? argv[i + 1] : NULL;
    if (value == NULL) die("each option needs a value");
    if (strcmp(argv[i], "--socket") == 0) {
      o.socket_path = value;
    } else if (strcmp(argv[i], "--tenant") == 0) {
      o.tenant = value;
    } else if (strcmp(argv[i], "--token") == 0) {
      o.token = value;
    } else if (strcmp(argv[i], "--role") == 0) {
      o.role = value;
    } else if (strcmp(argv[i], "--prompt") == 0) {
      o.prompt = (unsigned)number(value, 1000000000, "--prompt must be a positive number");
    } else if (strcmp(argv[i], "--blocks") == 0) {
      o.blocks = (uint32_t)number(value, BLOCKS_MAX, "--blocks must be 1 to 65536");
    } else if (strcmp(argv[i], "--block-bytes") == 0) {
      o.block_bytes = number(value, 1 << 30, "--block-bytes must be 1 to 1 GiB");
    } else {
      die("options: --socket --tenant --token --prompt --blocks --block-bytes --role");
    }
  }
  if (strcmp(o.role, "both") != 0) {
    server s = {0};
    open_server(&o, &s);
    const int code = serve(&o, &s);
    close_server(&s);
    return code;
  }
  int code = run_as("first", argc, argv);
  if (code == 0) code = run_as("second", argc, argv);
  if (code == 0) {
    printf("ok: %u blocks of %llu bytes came back equal\n", o.blocks,
           (unsigned long long)o.block_bytes);
  }
  return code;
}
