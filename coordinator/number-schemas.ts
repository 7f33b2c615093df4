// The engines' numbers as the API gives them: what agents answer is checked against these.

import { type Static, Type } from "@sinclair/typebox";

import { Name } from "../src/control/vm-spec.ts";

const Count = Type.Number({ minimum: 0 });
const Counters = Type.Record(Type.String(), Count);
const orNull = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) =>
  Type.Union([schema, Type.Null()]);

export const NodeSample = Type.Object({
  node: Type.Integer({ minimum: 0 }),
  host: orNull(Type.String({ description: "null: the host that leads the VM" })),
  vcpus: Count,
  memoryBytes: Count,
  lentBytes: orNull(Count),
  stats: orNull(
    Type.Object({
      node: Type.Integer({ minimum: 0 }),
      engine: { ...Counters, description: "counters since the engine started (zig/abi.zig)" },
      vcpus: Type.Array(Counters),
      faultLatency: Type.Object({
        count: Count,
        sum_ns: Count,
        buckets: Type.Array(Count, {
          description: "remote faults that took [2^i, 2^(i+1)) ns",
          maxItems: 64,
        }),
      }),
    }),
  ),
  silent: orNull(Type.String({ description: "why there are no stats" })),
});
export type NodeSample = Static<typeof NodeSample>;

export const VmNumbers = Type.Object({
  name: Name,
  state: Type.String(),
  at: Type.Number({ description: "Unix time in ms, going forward while the coordinator runs" }),
  nodes: Type.Array(NodeSample),
  silent: orNull(Type.String({ description: "why there are no nodes" })),
});
export type VmNumbers = Static<typeof VmNumbers>;

export const Heat = Type.Object({
  vm: Name,
  ranges: Type.Array(Type.Object({ gpa: Count, bytes: Count, node: Count }), {
    description: "guest RAM with its homes; blocks number it end to end",
  }),
  nodes: Type.Array(
    Type.Object({
      node: Type.Integer({ minimum: 0 }),
      heat: orNull(
        Type.Object({
          blockBytes: Count,
          faults: Type.Array(Count, {
            maxItems: 4096,
            description: "the node's remote faults since its engine started, modulo 2^32",
          }),
        }),
      ),
      silent: orNull(Type.String()),
    }),
  ),
});
export type Heat = Static<typeof Heat>;
