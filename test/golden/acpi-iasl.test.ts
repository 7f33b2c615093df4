// The reference implementation's opinion: iasl decompiles every table and compiles it again
// without an error, a warning or a remark, and gets the same bytes; acpiexec loads the DSDT and
// evaluates it. Without Debian's acpica-tools the tests are skipped, aloud.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  ACCESS,
  arg,
  buffer,
  device,
  equal,
  field,
  integer,
  list,
  local,
  method,
  name,
  namePath,
  notify,
  opRegion,
  REGION,
  returns,
  scope,
  store,
  string,
  when,
} from "../../acpi/aml.ts";
import { encodeTable } from "../../acpi/encoder.ts";
import { BOARDS, LARGE } from "../../acpi/example.fixture.ts";
import { extendedInterrupt, memory32Fixed, resourceTemplate } from "../../acpi/resources.ts";
import { buildTables } from "../../acpi/tables.ts";

const missing = ["iasl", "acpiexec"].filter((tool) => Bun.which(tool) === null);
const available = missing.length === 0;
const WHY = available ? "" : ` (no ${missing.join(", ")}: apt install acpica-tools)`;

const folder = mkdtempSync(join(tmpdir(), "ssihv-iasl-"));
afterAll(() => rmSync(folder, { recursive: true }));

function run(...command: string[]): string {
  const { stdout, stderr } = Bun.spawnSync(command, { cwd: folder, stdin: "ignore" });
  return `${stdout}${stderr}`;
}

/** Bytes that iasl writes itself: checksum, creator id and creator revision. */
function comparable(table: Uint8Array): string {
  const copy = table.slice();
  copy.fill(0, 9, 10).fill(0, 28, 36);
  return Buffer.from(copy).toString("hex");
}

const CLEAN = "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks";

/** Decompiles and compiles; the new bytes. */
function roundTrip(label: string, bytes: Uint8Array): Uint8Array {
  writeFileSync(join(folder, `${label}.dat`), bytes);
  const decompiled = run("iasl", "-p", label, "-d", `${label}.dat`);
  expect(decompiled).toMatch(/(ASL|Formatted) output:/i);
  expect(decompiled).not.toMatch(/error|warning|invalid|incorrect|unknown/i);
  const compiled = run("iasl", "-p", `${label}-again`, `${label}.dsl`);
  expect(compiled).toContain(CLEAN);
  // Constants and paths were in their shortest form already.
  expect(compiled).not.toMatch(/[1-9]\d* Optimizations/);
  return readFileSync(join(folder, `${label}-again.aml`));
}

describe.skipIf(!available).each(Object.entries(BOARDS))(`iasl on %s${WHY}`, (label, board) => {
  const { blobs } = buildTables(board);
  // iasl does not read an RSDP; tables.test.ts checks its two sums.
  test.each(blobs.filter((blob) => blob.name !== "RSDP"))("$name", ({ name: table, bytes }) => {
    const again = roundTrip(`${label}-${table}`, bytes);
    if (table === "FACS") expect([...again]).toEqual([...bytes]);
    else expect(comparable(again)).toBe(comparable(bytes));
  });
});

/** Every term and descriptor that our own DSDT has no use for yet. */
const EVERY_TERM = encodeTable(
  "DSDT",
  2,
  scope("_SB", [
    opRegion("REGS", REGION.io, 0x600n, 4),
    field("REGS", ACCESS.word, [
      ["STS0", 16],
      ["", 4],
      ["EN00", 12],
    ]),
    name("BUF0", buffer(Uint8Array.of(1, 2, 3))),
    name("BIG0", integer(0x1234_5678_9abc_def0n)),
    name("MANY", list(Array.from({ length: 300 }, (_, i) => integer(i)))),
    device("DEV0", [
      name("_HID", string("SSIH0001")),
      name(
        "_CRS",
        resourceTemplate([
          memory32Fixed(0xfed0_0000n, 0x400n, true),
          extendedInterrupt([20, 21], { trigger: "level", polarity: "low", shared: true }),
        ]),
      ),
      method("TEST", { args: 1, serialized: true }, [
        store(arg(0), local(0)),
        when(equal(local(0), integer(5)), [returns(integer(1))], [notify("DEV0", 0x80)]),
        store(integer(0x77), namePath("BIG0")),
        returns(namePath("BIG0")),
      ]),
    ]),
  ]),
);

test.skipIf(!available)(`iasl takes every term we can encode${WHY}`, () => {
  expect(comparable(roundTrip("every-term", EVERY_TERM))).toBe(comparable(EVERY_TERM));
});

describe.skipIf(!available)(`acpiexec${WHY}`, () => {
  /** Output of debugger commands over a table. */
  function execute(label: string, bytes: Uint8Array, commands: string): string {
    writeFileSync(join(folder, `${label}.dat`), bytes);
    const output = run("acpiexec", "-b", commands, `${label}.dat`);
    expect(output).not.toMatch(/ACPI (Error|Warning|Exception)/);
    expect(output).toContain("No outstanding allocations");
    return output;
  }

  test("loads the DSDT: S5, all CPUs, serial port, clock, PCI", () => {
    const dsdt = buildTables(LARGE).blobs.find((blob) => blob.name === "DSDT");
    const output = execute("large", dsdt?.bytes ?? new Uint8Array(), "namespace");
    for (const [i, cpu] of LARGE.cpus.entries()) {
      const uid = cpu.uid.toString(16).toUpperCase().padStart(16, "0");
      expect(output).toMatch(new RegExp(`C00${i} Device[^]*?_UID Integer .* = ${uid}`));
    }
    for (const found of ["COM1 Device", "RTC0 Device", "SYSR Device", "PCI0 Device"]) {
      expect(output).toContain(found);
    }
    expect(output).toMatch(/_S5_ Package .* Elements 04/);
  });

  test("runs a method: branches, stores, a notification", () => {
    const run5 = execute("every-term", EVERY_TERM, "execute \\_SB.DEV0.TEST 5");
    expect(run5).toMatch(/\[Integer\] = 0000000000000001/);
    const run6 = execute("every-term", EVERY_TERM, "execute \\_SB.DEV0.TEST 6");
    expect(run6).toMatch(/\[Integer\] = 0000000000000077/);
    expect(run6).toMatch(/notify/i);
  });
});
