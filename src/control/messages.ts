// What an agent and the coordinator say to each other over mTLS, one JSON object a line. The agent
// greets with `hello`, which tells all that runs on its host; the coordinator answers `welcome` or
// `refused`. Then orders go down, each answered by a `reply`, and reports come up.
// Both sides check every message against these schemas: the other may be of another build.

import { type Static, type TSchema, Type } from "@sinclair/typebox";
import { TypeCompiler } from "@sinclair/typebox/compiler";

import { messageOf, SsihvError } from "../base/errors.ts";
import { literals } from "./literals.ts";
import { Name, VmSpec } from "./vm-spec.ts";

export const AGENT_PROTOCOL = 2;

const Text = Type.String({ maxLength: 8192 });
const Word = Type.String({ maxLength: 255 });
const Count = Type.Integer({ minimum: 0, maximum: 2 ** 52 });
const Node = Type.Integer({ minimum: 0, maximum: 63 });
const Port = Type.Integer({ minimum: 1, maximum: 65_535 });
const Id = Type.Integer({ minimum: 0, maximum: 2 ** 52 });
/** Told apart by chance: of one start of a VM. */
const Run = Type.String({ pattern: "^[0-9a-f]{32}$" });

export const Fault = Type.Object({ code: Word, message: Text, hint: Type.Optional(Text) });
export type Fault = Static<typeof Fault>;

export function faultOf(error: unknown): Fault {
  const ours = error instanceof SsihvError;
  return {
    code: ours ? error.code : "defect_found",
    message: messageOf(error),
    ...(ours && error.hint !== undefined && { hint: error.hint }),
  };
}

/** What a host gives to VMs. */
export const Capacity = Type.Object({ cpus: Count, memoryBytes: Count });
export type Capacity = Static<typeof Capacity>;

export const Check = Type.Object({
  verdict: literals(["fit", "degraded", "unfit"]),
  problems: Type.Array(Text, { maxItems: 64 }),
});
export type Check = Static<typeof Check>;

/** How a VM, or a host's part of one, came to its end. */
export const Ended = Type.Object({
  kind: literals(["stopped", "failed"]),
  /** Of a stop: powered_off, requested, ...; of a failure: its error code. */
  reason: Word,
  text: Text,
});
export type Ended = Static<typeof Ended>;

/** A host's part of a VM that runs, or ran and was not yet asked to forget. */
export const Part = Type.Object({
  vm: Name,
  run: Run,
  /** Absent: it has not joined yet. */
  node: Type.Optional(Node),
  lead: Type.Boolean(),
  state: literals(["waiting", "starting", "running", "paused", "stopping", "ended"]),
  ended: Type.Optional(Ended),
});
export type Part = Static<typeof Part>;

/** PEM. */
const Request = Type.String({ maxLength: 8192 });
const Certificates = Type.String({ maxLength: 32_768 });

/** The CAs to believe, and which of them signs: a certificate of another is to be renewed. */
export const Trust = Type.Object({ ca: Certificates, issuer: Word });
export type Trust = Static<typeof Trust>;

/** Where agents reach a coordinator. */
export const CoordinatorPlace = Type.Object({
  host: Type.String({ minLength: 1, maxLength: 255 }),
  port: Port,
});
export type CoordinatorPlace = Static<typeof CoordinatorPlace>;
/** All of them, where one leads and others stand by. */
export const CoordinatorPlaces = Type.Array(CoordinatorPlace, { maxItems: 16 });

export const FromAgent = Type.Union([
  Type.Object({
    type: Type.Literal("hello"),
    protocol: Type.Integer(),
    /** It is connected already: the older connection ends when nothing is open on it. */
    moves: Type.Optional(Type.Boolean()),
    build: Word,
    /** The address at which other hosts reach its engines. */
    laneHost: Word,
    capacity: Capacity,
    check: Check,
    /** It takes nodes with vCPUs. */
    runsVcpus: Type.Boolean(),
    parts: Type.Array(Part, { maxItems: 1024 }),
  }),
  Type.Object({ type: Type.Literal("alive") }),
  Type.Object({ type: Type.Literal("part"), part: Part }),
  Type.Object({
    type: Type.Literal("reply"),
    id: Id,
    fault: Type.Optional(Fault),
    /** To a question; what it is, whoever asked knows. */
    answer: Type.Optional(Type.Unknown()),
  }),
  Type.Object({
    type: Type.Literal("console"),
    stream: Id,
    /** Base64. */
    data: Type.String({ maxLength: 1 << 20 }),
  }),
  Type.Object({ type: Type.Literal("console_end"), stream: Id }),
  /** For a new certificate in the place of the one that this connection was made with. */
  Type.Object({ type: Type.Literal("renew"), request: Request }),
]);
export type FromAgent = Static<typeof FromAgent>;

const order = <T extends string>(type: T) => ({ type: Type.Literal(type), id: Id, run: Run });
/** 32 bytes in hex: sealed by mTLS on its way, in no log, in no store. */
const Key = Type.String({ pattern: "^[0-9a-f]{64}$" });

export const ToAgent = Type.Union([
  Type.Object({
    type: Type.Literal("welcome"),
    /** An `alive` is expected this often, and answered by one. */
    heartbeatMs: Count,
    /** Whoever hears nothing for so long takes the other for gone. */
    silenceMs: Count,
    trust: Type.Optional(Trust),
    coordinators: Type.Optional(CoordinatorPlaces),
  }),
  Type.Object({ type: Type.Literal("alive") }),
  Type.Object({ type: Type.Literal("refused"), fault: Fault }),
  Type.Object({
    ...order("lead"),
    spec: VmSpec,
    key: Key,
    listenHost: Word,
    listenPort: Port,
  }),
  Type.Object({
    ...order("join"),
    vm: Name,
    key: Key,
    node: Node,
    memoryOnly: Type.Boolean(),
    leadHost: Word,
    leadPort: Port,
  }),
  Type.Object(order("stop")),
  /** Of the lead: the VM's numbers, where pages are, or another size for the balloon. */
  Type.Object({
    ...order("ask"),
    question: Type.Union([
      Type.Object({ op: Type.Literal("show") }),
      Type.Object({ op: Type.Literal("stats") }),
      Type.Object({ op: Type.Literal("heat") }),
      Type.Object({ op: Type.Literal("pages"), gpa: Count, count: Count }),
      Type.Object({ op: Type.Literal("balloon"), bytes: Count }),
    ]),
  }),
  /** Other CAs than it was welcomed with. */
  Type.Object({ type: Type.Literal("trust"), trust: Trust }),
  /** There are others than it was welcomed with. */
  Type.Object({ type: Type.Literal("coordinators"), coordinators: CoordinatorPlaces }),
  /** To `renew`: one or the other. */
  Type.Object({ type: Type.Literal("renewed"), certificate: Certificates, ca: Certificates }),
  Type.Object({ type: Type.Literal("not_renewed"), fault: Fault }),
  /** Its end is on record. */
  Type.Object({ type: Type.Literal("forget"), run: Run }),
  Type.Object({ ...order("console_open"), stream: Id }),
  Type.Object({ type: Type.Literal("console_close"), stream: Id }),
  Type.Object({ ...order("console_input"), data: Type.String({ maxLength: 1 << 16 }) }),
]);
export type ToAgent = Static<typeof ToAgent>;
export type Order = Extract<ToAgent, { id: number }>;
export type AgentQuestion = Extract<ToAgent, { type: "ask" }>["question"];

function checked<T extends TSchema>(schema: T): (value: unknown) => Static<T> | undefined {
  const compiled = TypeCompiler.Compile(schema);
  return (value) => (compiled.Check(value) ? value : undefined);
}

/** Undefined: not a message of this protocol. */
export const parseFromAgent = checked(FromAgent);
export const parseToAgent = checked(ToAgent);
