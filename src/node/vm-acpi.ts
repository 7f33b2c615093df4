// The ACPI tables that a VM of this shape would get, without starting it.

import { type AcpiBlob, buildTables } from "../../acpi/tables.ts";
import { acpiBoard } from "../vmm/acpi-board.ts";
import { layoutMemory } from "../vmm/memory-map.ts";
import { placeVcpus } from "../vmm/topology.ts";
import type { NodeRequest } from "./vm-request.ts";

/** In address order, the RSDP first. */
export function vmAcpiTables(nodes: readonly NodeRequest[]): AcpiBlob[] {
  const shapes = nodes.map(({ cpus, memoryBytes }, id) => ({ id, vcpus: cpus, memoryBytes }));
  const memory = layoutMemory(shapes);
  return buildTables(acpiBoard(memory, placeVcpus(shapes), shapes.length)).blobs;
}
