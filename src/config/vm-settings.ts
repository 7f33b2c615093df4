// Settings of a VM that both files have, cluster-config.yaml below `vm` and vm.yaml at its top: one
// schema and one set of words for each key, so that both take and refuse the same.

import { Type } from "@sinclair/typebox";

import { MATRICES_EXPECTED, Matrix } from "./memory-costs.ts";

/** Sizes and durations too: a bare number is refused with the words for its key. */
export const Text = Type.String({ minLength: 1, maxLength: 4096 });
export const Name = Type.String({ pattern: "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" });

export const NAME_EXPECTED = "a name of a-z, 0-9 and '-', at most 63 characters";
export const SIZE_EXPECTED = 'a size with its unit such as "512M" or "4G"';

export const VM_SETTINGS = {
  initrd: Type.Optional(Text),
  cmdline: Type.Optional(Type.String({ maxLength: 2047 })),
  reboot: Type.Optional(Type.Boolean()),
  page_tables: Type.Optional(
    Type.Union([Type.Literal("auto"), Type.Literal("strict"), Type.Literal("replicated")]),
  ),
  clock_dilation: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
  peer_timeout: Type.Optional(Text),
  stall_freeze: Type.Optional(Text),
  hold_max: Type.Optional(Text),
  poll_max: Type.Optional(Text),
  memory_nodes: Type.Optional(Type.Integer({ minimum: 0, maximum: 7 })),
  node_memory: Type.Optional(Text),
  memory_node_memory: Type.Optional(Text),
  cache: Type.Optional(Text),
  copies: Type.Optional(Type.Integer({ minimum: 1, maximum: 2 })),
  balloon: Type.Optional(Text),
  memory_latency: Type.Optional(Matrix),
  memory_bandwidth: Type.Optional(Matrix),
};

/** What a value at a key should have been, where the schema's own words say too little. */
export const SETTINGS_EXPECTED = {
  cpus: "a whole number from 1 to 64",
  memory: SIZE_EXPECTED,
  cmdline: "text of at most 2047 characters",
  reboot: "true or false",
  page_tables: "one of auto, strict, replicated",
  clock_dilation: "a whole number from 1 to 1000",
  peer_timeout: 'a duration with its unit such as "5s"',
  stall_freeze: 'a duration with its unit such as "300ms"',
  hold_max: 'a duration with its unit such as "1ms"',
  poll_max: 'a duration with its unit such as "200us"',
  memory_nodes: "a whole number from 0 to 7",
  node_memory: SIZE_EXPECTED,
  memory_node_memory: SIZE_EXPECTED,
  cache: SIZE_EXPECTED,
  copies: "1 or 2",
  balloon: 'a size with its unit such as "512M", or "0"',
  ...MATRICES_EXPECTED,
};
