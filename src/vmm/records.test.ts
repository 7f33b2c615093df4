import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { busRegions, registerFiles } from "./board.ts";
import { engineConfig } from "./engine-config.ts";
import { longModeRegisters } from "./long-mode.ts";
import {
  BUS_TARGET,
  IO_KIND,
  REGISTER_FILE_MAX,
  VIRTIO_CONFIG_MAX,
  VIRTIO_QUEUES_MAX,
} from "./records.ts";
import { virtioBalloon } from "./virtio-balloon.ts";

const abi = readFileSync(new URL("../../zig/abi.zig", import.meta.url), "utf8");

/** `name = number` members of an enum, whichever way it is laid out. */
function enumOf(name: string): Record<string, number> {
  const body = new RegExp(`pub const ${name} = enum\\(u32\\) \\{([^}]*)\\}`).exec(abi)?.[1] ?? "";
  return Object.fromEntries(
    [...body.matchAll(/(\w+) = (\d+)/g)].map(([, key = "", value]) => [key, Number(value)]),
  );
}

/** Field names of a record, padding and spare words left out. */
function fieldsOf(name: string): string[] {
  const body =
    new RegExp(`pub const ${name} = extern struct \\{([\\s\\S]*?)\\n\\};`).exec(abi)?.[1] ?? "";
  return [...body.matchAll(/^ {4}(\w+):/gm)]
    .map(([, field = ""]) => field)
    .filter((field) => field !== "pad" && field !== "reserved");
}

test("bus targets and io kinds are those of zig/abi.zig", () => {
  expect(enumOf("BusTarget")).toEqual({ ...BUS_TARGET });
  expect(enumOf("IoKind")).toMatchObject({ ...IO_KIND });
  expect(abi).toContain(`register_file_max: u32 = ${REGISTER_FILE_MAX};`);
  expect(abi).toContain(`virtio_queues_max: u32 = ${VIRTIO_QUEUES_MAX};`);
  expect(abi).toContain(`virtio_config_max: u32 = ${VIRTIO_CONFIG_MAX};`);
});

test("records have the field names of zig/abi.zig", () => {
  const registers = longModeRegisters({ rip: 0n, rsi: 0n, rsp: 0n });
  expect(Object.keys(registers).sort()).toEqual(fieldsOf("VcpuRecord").sort());
  expect(Object.keys(registers.cs).sort()).toEqual(fieldsOf("Segment").sort());
  expect(Object.keys(registers.gdt).sort()).toEqual(fieldsOf("DescriptorTable").sort());
  expect(Object.keys(busRegions()[0] ?? {}).sort()).toEqual(fieldsOf("BusRegion").sort());
  expect(Object.keys(registerFiles()[0] ?? {}).sort()).toEqual(fieldsOf("RegisterFile").sort());
  expect(Object.keys(virtioBalloon(0)).sort()).toEqual(fieldsOf("VirtioDevice").sort());
});

test("the engine's configuration has every field but the process's own descriptors", () => {
  const config = engineConfig({
    node: 0,
    nodes: [{ vcpus: 1, memoryBytes: 2 ** 24 }],
    ram: [{ gpa: 0n, size: 1n << 24n, node: 0 }],
    tscKhz: 1,
    laneKey: undefined,
    settings: {
      pageTables: "strict",
      clockDilation: 1,
      peerTimeoutMs: 1,
      stallFreezeMs: 300,
      holdUsMax: 0,
      pollUsMax: 0,
      plainMemory: true,
      pinVcpus: false,
    },
  });
  const own = new Set(["shared_fd", "console_in_fd", "console_out_fd", "doorbell_fd"]);
  const wanted = fieldsOf("EngineConfig").filter((field) => !own.has(field));
  expect(Object.keys(config).sort()).toEqual(wanted.sort());
});
