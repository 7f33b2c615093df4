// Where a VM's RAM lies, from the nodes of its plan, in plain numbers: each part with its home.

import { isMemoryNode, type NodeSizes } from "./memory-budget.ts";
import { layoutMemory } from "./memory-map.ts";

export interface RamPart {
  readonly gpa: number;
  readonly bytes: number;
  readonly node: number;
}

type PlanNode = NodeSizes & { readonly id: number; readonly vcpus: number };

export function ramPartsOf(nodes: readonly PlanNode[]): RamPart[] {
  const compute = nodes.filter((node) => !isMemoryNode(node));
  const { ram } = layoutMemory(
    compute.map(({ id, vcpus, memoryBytes }) => ({ id, vcpus, memoryBytes: BigInt(memoryBytes) })),
  );
  return ram.map(({ gpa, size, node }) => ({ gpa: Number(gpa), bytes: Number(size), node }));
}
