/* Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
 *
 * A client in plain C, started by client_process_test: stores blocks, loads them back and then ends in the
 * way it was told, never by terrace_close.
 *
 *   client_probe SOCKET exit   returns from main with a store under way
 *   client_probe SOCKET hold   holds a lease, says "holding", waits to be killed
 */
#include <stdio.h>
#include <string.h>

#include "terrace.h"

enum { BLOCKS = 16, BLOCK_BYTES = 100000 };
static unsigned char source[BLOCKS][BLOCK_BYTES], target[BLOCKS][BLOCK_BYTES];
static uint8_t keys[BLOCKS][TERRACE_KEY_BYTES], more_keys[BLOCKS][TERRACE_KEY_BYTES];

static int failed(const char* what) {
  fprintf(stderr, "client_probe: %s: %s\n", what, terrace_error_text());
  return 1;
}

/* Static: still reachable at the end, hence no leak to the sanitizer builds. */
static terrace_client* client;
static terrace_keyspace* keyspace;
static terrace_pages *from, *to;
static terrace_op* op;

int main(int argc, char** argv) {
  terrace_options options = {0};
  terrace_keyspace_desc desc = {0};
  terrace_lookup_part part = {0};
  terrace_ref refs[BLOCKS];
  uint64_t block_ids[BLOCKS];
  terrace_plane plane = {source, BLOCK_BYTES, BLOCK_BYTES};
  if (argc != 3) return 2;
  for (int i = 0; i < BLOCKS; ++i) {
    block_ids[i] = (uint64_t)i;
    memset(keys[i], i + 1, TERRACE_KEY_BYTES);
    memset(more_keys[i], i + 101, TERRACE_KEY_BYTES);
    memset(source[i], i + 1, BLOCK_BYTES);
  }
  options.struct_bytes = sizeof(options);
  options.socket_path = argv[1];
  if (terrace_connect(&options, &client) != TERRACE_OK) return failed("connect");
  desc.struct_bytes = sizeof(desc);
  desc.model = "probe";
  desc.block_bytes = BLOCK_BYTES;
  if (terrace_keyspace_open(client, &desc, &keyspace) != TERRACE_OK) return failed("key space");
  if (terrace_pages_register(client, &plane, 1, BLOCKS, &from) != TERRACE_OK) return failed("pages");
  plane.base = target;
  if (terrace_pages_register(client, &plane, 1, BLOCKS, &to) != TERRACE_OK) return failed("pages");
  if (terrace_store(client, keyspace, NULL, keys[0], BLOCKS, TERRACE_STORE_CHAIN, NULL, from,
                    block_ids, &op) != TERRACE_OK ||
      terrace_op_wait(op, 20000000) != TERRACE_OK) {
    return failed("store");
  }
  terrace_op_free(op);
  part.keyspace = keyspace;
  part.keys = keys[0];
  part.n_keys = BLOCKS;
  part.refs = refs;
  if (terrace_lookup(client, &part, 1, 0, 0) != TERRACE_OK || part.n_prefix != BLOCKS) {
    return failed("lookup");
  }
  if (terrace_load(client, keyspace, refs, keys[0], BLOCKS, to, block_ids, &op) != TERRACE_OK ||
      terrace_op_wait(op, 20000000) != TERRACE_OK) {
    return failed("load");
  }
  terrace_op_free(op);
  if (memcmp(source, target, sizeof(source)) != 0) return failed("the loaded bytes differ");
  if (strcmp(argv[2], "hold") == 0) {
    puts("holding");
    fflush(stdout);
    (void)getchar(); /* until killed */
  }
  if (terrace_store(client, keyspace, NULL, more_keys[0], BLOCKS, TERRACE_STORE_CHAIN, NULL,
                    from, block_ids, &op) != TERRACE_OK) {
    return failed("second store");
  }
  return 0;
}
