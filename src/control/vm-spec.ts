// What a VM is to be, as users write it to the coordinator and the coordinator to the agents: its
// nodes with their CPUs and memory, what it boots, and the settings that differ from the defaults.
// One schema for the API, the store and the wire.

import { type Static, Type } from "@sinclair/typebox";

import { literals } from "./literals.ts";

/** Names of VMs and hosts: parts of file names and of certificates. */
export const Name = Type.String({
  pattern: "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
  description: "a-z, 0-9 and '-', at most 63 characters",
});

/** Of the host that leads the VM: a relative one means nothing there. */
const Path = Type.String({ pattern: "^/[^\\u0000]*$", maxLength: 4096 });
/** A node's RAM is made of these, and of two at least (src/vmm/memory-map.ts). */
const RAM_BLOCK_BYTES = 2 << 20;
/** Bytes; a JSON number holds 8 PiB exactly. */
const Bytes = Type.Integer({ minimum: 1, maximum: 2 ** 52 });
const Milliseconds = Type.Integer({ minimum: 0, maximum: 3_600_000 });
const Microseconds = Type.Integer({ minimum: 0, maximum: 1_000_000 });

export const NodeSpec = Type.Object(
  {
    cpus: Type.Integer({ minimum: 1, maximum: 64 }),
    memoryBytes: Type.Integer({
      ...{ minimum: 2 * RAM_BLOCK_BYTES, maximum: 2 ** 52, multipleOf: RAM_BLOCK_BYTES },
      description: "guest RAM that it is home of; at least 16 MiB on the first node",
    }),
    host: Type.Optional(
      Type.String({ ...Name, description: "the host that it must be on; absent: any that fits" }),
    ),
  },
  { additionalProperties: false, $id: "NodeSpec" },
);

/** As the guest is told of its memory: [node of the CPU][node of the memory]. */
const Matrix = Type.Array(
  Type.Array(Type.Number({ exclusiveMinimum: 0, maximum: 1e15 }), { minItems: 1, maxItems: 8 }),
  { minItems: 1, maxItems: 8, description: "a row and a column for each node" },
);

export const VmSpec = Type.Object(
  {
    name: Name,
    nodes: Type.Array(NodeSpec, { minItems: 1, maxItems: 8 }),
    kernel: Type.String({ ...Path, description: "on the host of the first node" }),
    initrd: Type.Optional(Type.String({ ...Path, description: "on the host of the first node" })),
    cmdline: Type.Optional(
      Type.String({
        ...{ pattern: "^[^\\u0000]*$", maxLength: 2047 },
        description: "kernel options, after the defaults",
      }),
    ),
    reboot: Type.Optional(
      Type.Boolean({ description: "start again when the guest resets [true]; else that ends it" }),
    ),
    pageTables: Type.Optional(literals(["auto", "strict", "replicated"])),
    clockDilation: Type.Optional(
      Type.Integer({
        ...{ minimum: 1, maximum: 1000 },
        description: "real seconds in a second of the guest [1]",
      }),
    ),
    peerTimeoutMs: Type.Optional(
      Type.Integer({ ...Milliseconds, description: "a node that is not heard so long is dead" }),
    ),
    stallFreezeMs: Type.Optional(
      Type.Integer({ ...Milliseconds, description: "one that stalls so long freezes the VM" }),
    ),
    holdUsMax: Type.Optional(
      Type.Integer({ ...Microseconds, description: "a page stays so long once it came" }),
    ),
    pollUsMax: Type.Optional(
      Type.Integer({ ...Microseconds, description: "an engine polls so long before it sleeps" }),
    ),
    memoryNodes: Type.Optional(
      Type.Integer({ minimum: 0, maximum: 7, description: "nodes that only lend memory [0]" }),
    ),
    nodeMemoryBytes: Type.Optional(
      Type.Integer({ ...Bytes, description: "what each host with vCPUs gives" }),
    ),
    memoryNodeMemoryBytes: Type.Optional(
      Type.Integer({ ...Bytes, description: "what each memory node lends" }),
    ),
    cacheBytes: Type.Optional(
      Type.Integer({ ...Bytes, description: "of a node's memory: for pages of other nodes" }),
    ),
    copies: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 2, description: "memory nodes with each page [1]" }),
    ),
    balloonBytes: Type.Optional(
      Type.Integer({
        ...{ minimum: 0, maximum: 2 ** 52 },
        description: "gives the VM a balloon, which takes so much from the guest at first",
      }),
    ),
    memoryLatencyNs: Type.Optional(Matrix),
    memoryBandwidthMBps: Type.Optional(Matrix),
  },
  { additionalProperties: false, $id: "VmSpec" },
);
export type VmSpec = Static<typeof VmSpec>;
