// What the API takes and gives, as schemas: requests are checked against them, the OpenAPI document
// is made from them, and the command line's types come from here.

import { type Static, Type } from "@sinclair/typebox";

import { literals } from "../src/control/literals.ts";
import { Capacity, Check, Ended } from "../src/control/messages.ts";
import { Name, type VmSpec } from "../src/control/vm-spec.ts";
import { SAME_AS } from "./openapi.ts";

const Time = Type.String({ description: "ISO 8601, UTC" });
const orNull = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) =>
  Type.Union([schema, Type.Null()]);

export const ApiError = Type.Object(
  {
    error: Type.Object({
      code: Type.String({ description: "stable; noun_state" }),
      message: Type.String(),
      hint: Type.Optional(Type.String()),
    }),
  },
  { $id: "Error" },
);
export type ApiError = Static<typeof ApiError>;

export const Host = Type.Object(
  {
    name: Name,
    state: literals(["up", "silent"]),
    since: orNull(Time),
    why: orNull(Type.String({ description: "why it is silent" })),
    joinedAt: Time,
    capacity: orNull(Capacity),
    used: Capacity,
    check: orNull(Check),
    runsVcpus: Type.Boolean({ description: "else it can only lend memory" }),
    build: orNull(Type.String()),
    laneHost: orNull(Type.String({ description: "where other hosts reach its engines" })),
    certificate: orNull(
      Type.Object(
        {
          expiresAt: Time,
          issuer: Type.String({ description: "the CA that signed it" }),
          current: Type.Boolean({
            description: "of the newest CA; else the old one is needed yet",
          }),
        },
        { description: "with which its agent connected last; renewed by itself while it is up" },
      ),
    ),
  },
  { $id: "Host" },
);
export type Host = Static<typeof Host>;

export const Place = Type.Object(
  {
    node: Type.Integer(),
    host: Name,
    cpus: Type.Integer(),
    memoryBytes: Type.Integer({ description: "of the host, page states and engine included" }),
    memoryOnly: Type.Boolean(),
  },
  { $id: "Place" },
);

export const Vm = Type.Object(
  {
    name: Name,
    state: literals([
      ...(["stopped", "failed", "waiting", "starting", "running", "paused"] as const),
      ...(["stopping", "unknown"] as const),
    ]),
    // As it was accepted, perhaps by an older build: it is not judged again when it is shown.
    spec: Type.Unsafe<VmSpec>(Type.Any({ [SAME_AS]: "VmSpec" })),
    createdAt: Time,
    since: orNull(Time),
    places: Type.Array(Place),
    last: orNull(Type.Object({ ...Ended.properties, at: Time })),
  },
  { $id: "Vm" },
);
export type Vm = Static<typeof Vm>;

export const TokenRequest = Type.Object(
  {
    host: Type.Optional(Type.String({ ...Name, description: "only for a host of this name" })),
    seconds: Type.Integer({ minimum: 1, maximum: 604_800 }),
    rejoin: Type.Optional(
      Type.Boolean({ description: "the host has joined already, and lost its certificate" }),
    ),
  },
  { additionalProperties: false },
);

export const TokenListed = Type.Object(
  {
    id: Type.String(),
    host: orNull(Name),
    expiresAt: Time,
  },
  { $id: "TokenListed" },
);
export const Token = Type.Object(
  {
    ...TokenListed.properties,
    token: Type.String({ description: "for ssihv node --join; told once" }),
  },
  { $id: "Token" },
);
export type Token = Static<typeof Token>;

/** Of all hosts: it has not the limits that each has. */
const Sum = Type.Object({ cpus: Type.Number(), memoryBytes: Type.Number() });

export const Status = Type.Object(
  {
    version: Type.String(),
    startedAt: Time,
    hosts: Type.Object({ up: Type.Integer(), silent: Type.Integer() }),
    vms: Type.Record(Type.String(), Type.Integer(), { description: "how many in each state" }),
    capacity: Sum,
    used: Sum,
    certificateExpires: Time,
  },
  { $id: "Status" },
);
export type Status = Static<typeof Status>;

export const ConsoleInput = Type.Object(
  {
    writer: Type.String({
      ...{ pattern: "^[0-9a-f]{32}$", description: "x-ssihv-writer of a console that is open" },
    }),
    data: Type.String({
      ...{ pattern: "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$" },
      ...{ maxLength: 65_536, description: "base64" },
    }),
  },
  { additionalProperties: false },
);

export const ByName = Type.Object({ name: Name });
const TrueFalse = literals(["true", "false"]);
const FORCE = "true: also one that runs, or of which nothing is known";
export const Forced = Type.Object({
  force: Type.Optional(Type.Unsafe<"true" | "false">({ ...TrueFalse, description: FORCE })),
});

export const ConsoleQuery = Type.Object({
  write: Type.Optional(
    Type.Unsafe<"true" | "false">({ ...TrueFalse, description: "true: to type, too" }),
  ),
});

export const EventsHeaders = Type.Object({
  "last-event-id": Type.Optional(
    Type.String({ description: "the last event that was seen: those after it follow" }),
  ),
});

/** A message of the event stream, as a reader of such streams has it. */
export const EventMessage = Type.Object(
  {
    event: Type.String({
      description: "host_joined, host_up, host_silent, host_removed, vm_created, vm_state, ...",
    }),
    id: Type.Optional(Type.String({ description: "absent: it only says that nothing happened" })),
    data: Type.String({ description: "JSON: {id, at, event, host?, vm?, text?}" }),
  },
  { $id: "Event" },
);

export const BalloonSize = Type.Object(
  { bytes: Type.Integer({ minimum: 0, maximum: 2 ** 52 }) },
  { additionalProperties: false },
);

export const PagesQuery = Type.Object({
  gpa: Type.String({
    pattern: "^(0x[0-9a-fA-F]{1,13}|[0-9]{1,15})$",
    description: "guest-physical address in the first page",
  }),
  count: Type.Optional(
    Type.String({
      ...{ pattern: "^([1-9][0-9]{0,2}|10[01][0-9]|102[0-4])$", description: "pages, 1 to 1024" },
    }),
  ),
});
