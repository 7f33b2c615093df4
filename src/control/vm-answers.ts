// What the agent that leads a VM answers when it is asked about it: schemas of what
// src/node/vm-view.ts makes. The coordinator checks answers against them, since an agent may be of
// another build, and describes its API with them. Keys that a newer agent adds pass.

import { type Static, type TSchema, Type } from "@sinclair/typebox";
import { TypeCompiler } from "@sinclair/typebox/compiler";

import { literals } from "./literals.ts";

/** Said aloud: the framework closes objects where nothing is said. */
const OPEN = { additionalProperties: true };
const Count = Type.Number({ minimum: 0 });
const Node = Type.Integer({ minimum: 0, maximum: 63 });
const Words = Type.String({ maxLength: 8192 });

function orNull<T extends TSchema>(schema: T) {
  return Type.Union([schema, Type.Null()]);
}

const STATES = ["waiting", "starting", "running", "paused", "stopping"] as const;
const PAGE_STATES = ["untouched", "shared", "exclusive", "replicated", "stored"] as const;

export const BalloonAnswer = Type.Object(
  {
    target: Type.Number({ description: "bytes that it is to have" }),
    actual: Type.Number({ description: "bytes that it has, by the guest's word" }),
    inflated: Type.Number({ description: "bytes given by going into it, so far" }),
    reported: Type.Number({ description: "bytes given by being reported free, so far" }),
  },
  { $id: "Balloon", ...OPEN },
);
export type BalloonAnswer = Static<typeof BalloonAnswer>;

const nodeHead = {
  node: Node,
  host: orNull(Type.String({ description: "null: the host that leads the VM" })),
  vcpus: Count,
  memoryBytes: Type.Number({ minimum: 0, description: "guest RAM that it is home of" }),
  lentBytes: orNull(Type.Number({ minimum: 0, description: "of a memory node: what it lends" })),
  silent: orNull(Type.String({ description: "why there are no stats" })),
};

const Summary = Type.Object(
  {
    runSeconds: Count,
    exits: Count,
    remoteFaults: Count,
    faultUsMedian: Count,
    faultUsP99: Count,
    stalledShare: Type.Number({ description: "of the vCPUs' time, 0 to 1" }),
    longestStallUs: Count,
    oldest_fault_us: Type.Number({ description: "age of the oldest fault in flight; 0: none" }),
    freezes: Count,
    frozenSeconds: Count,
    balloon: Type.Optional(BalloonAnswer),
  },
  { $id: "EngineSummary", ...OPEN },
);

const SandboxAnswer = Type.Object(
  {
    user: Type.Optional(Type.Integer({ description: "user of its own; absent: its parent's" })),
    filter: Type.Boolean({ description: "no new privileges, system calls filtered" }),
    memoryBytesMax: Type.Optional(Type.Number({ description: "of its control group" })),
    missing: Type.Array(Type.String({ description: "what its host did not allow" })),
  },
  { $id: "EngineSandbox", ...OPEN },
);

export const EnginesAnswer = Type.Object(
  {
    name: Type.String(),
    state: literals(STATES),
    vcpus: Count,
    memoryBytes: Count,
    uptimeSeconds: orNull(Count),
    nodes: Type.Array(
      Type.Object({
        ...nodeHead,
        pid: orNull(Type.Integer()),
        sandbox: Type.Optional(orNull(SandboxAnswer)),
        stats: orNull(Summary),
      }),
    ),
  },
  { $id: "VmEngines", ...OPEN },
);

const Counters = Type.Record(Type.String(), Type.Number());

export const StatsAnswer = Type.Object(
  {
    name: Type.String(),
    state: literals(STATES),
    nodes: Type.Array(
      Type.Object({
        ...nodeHead,
        stats: orNull(
          Type.Object(
            {
              node: Node,
              engine: Counters,
              vcpus: Type.Array(Counters),
              faultLatency: Type.Object({
                count: Count,
                sum_ns: Count,
                buckets: Type.Array(Count, { description: "i counts [2^i, 2^(i+1)) ns" }),
              }),
            },
            { $id: "EngineCounters", ...OPEN },
          ),
        ),
      }),
    ),
  },
  { $id: "VmStats", ...OPEN },
);
export type StatsAnswer = Static<typeof StatsAnswer>;

export const PagesAnswer = Type.Object(
  {
    vm: Type.String(),
    pages: Type.Array(
      Type.Object({
        gpa: Count,
        home: Node,
        state: orNull(literals(PAGE_STATES)),
        owner: orNull(Node),
        sharers: Type.Array(Node),
        version: orNull(Count),
        transaction: orNull(
          Type.Object({
            requester: Node,
            request: Type.String(),
            phase: Type.String(),
            queued: Count,
          }),
        ),
        copies: Type.Array(
          Type.Object({
            node: Node,
            access: literals(["invalid", "shared", "exclusive", "replicated"]),
            version: Count,
            waitsFor: Type.Optional(Type.String()),
            revokesDeferred: Count,
          }),
        ),
      }),
    ),
    silent: Type.Array(Type.Object({ node: Node, why: Words })),
  },
  { $id: "VmPages", ...OPEN },
);

export const HeatAnswer = Type.Object(
  {
    vm: Type.String(),
    ranges: Type.Array(Type.Object({ gpa: Count, bytes: Count, node: Node }), {
      description: "guest RAM with its homes; blocks number it end to end",
    }),
    nodes: Type.Array(
      Type.Object({
        node: Node,
        heat: orNull(
          Type.Object({
            blockBytes: Count,
            faults: Type.Array(Count, {
              maxItems: 4096,
              description: "the node's remote faults since its engine started, modulo 2^32",
            }),
          }),
        ),
        silent: orNull(Words),
      }),
    ),
  },
  { $id: "VmHeat", ...OPEN },
);
export type HeatAnswer = Static<typeof HeatAnswer>;

const ANSWERS = {
  show: TypeCompiler.Compile(EnginesAnswer),
  stats: TypeCompiler.Compile(StatsAnswer),
  heat: TypeCompiler.Compile(HeatAnswer),
  pages: TypeCompiler.Compile(PagesAnswer),
  balloon: TypeCompiler.Compile(BalloonAnswer),
} as const;

export type Answers = { [Op in keyof typeof ANSWERS]: Static<AnswerSchemas[Op]> };
interface AnswerSchemas {
  readonly show: typeof EnginesAnswer;
  readonly stats: typeof StatsAnswer;
  readonly heat: typeof HeatAnswer;
  readonly pages: typeof PagesAnswer;
  readonly balloon: typeof BalloonAnswer;
}

/** Undefined: not what such a question is answered with. */
export function parseAnswer<Op extends keyof Answers>(
  op: Op,
  value: unknown,
): Answers[Op] | undefined {
  return ANSWERS[op].Check(value) ? (value as Answers[Op]) : undefined;
}
