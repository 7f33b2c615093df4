// The engines' numbers of all VMs, as the API gives them to whoever watches the cluster.

import { type Static, Type } from "@sinclair/typebox";

import { StatsAnswer } from "../src/control/vm-answers.ts";
import { Name } from "../src/control/vm-spec.ts";

export const VmNumbers = Type.Object(
  {
    name: Name,
    state: Type.String(),
    at: Type.Number({ description: "Unix time in ms, going forward while the coordinator runs" }),
    nodes: StatsAnswer.properties.nodes,
    silent: Type.Union([Type.String({ description: "why there are no nodes" }), Type.Null()]),
  },
  { $id: "VmNumbers" },
);
export type VmNumbers = Static<typeof VmNumbers>;
export type NodeSample = VmNumbers["nodes"][number];
