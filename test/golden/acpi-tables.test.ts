// Golden bytes: the tables of three boards as hex, one file per board in test/golden/acpi. A
// change of one byte fails here with the field's name. After a wanted change:
// SSIHV_UPDATE_GOLDEN=1 bun test test/golden, and review the diff. CI (CI=true) refuses to
// regenerate.

import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BOARDS } from "../../acpi/example.fixture.ts";
import { explainTable } from "../../acpi/explain.ts";
import { type AcpiBlob, buildTables } from "../../acpi/tables.ts";

const FOLDER = join(import.meta.dir, "acpi");
const UPDATE = process.env["SSIHV_UPDATE_GOLDEN"] === "1";
const REGENERATE = "SSIHV_UPDATE_GOLDEN=1 bun test test/golden writes the new bytes";

/** "FACP e0200" and then 16 bytes a line. */
function toText(blobs: readonly AcpiBlob[]): string {
  const tables = blobs.map(({ name, gpa, bytes }) => {
    const rows = (
      Buffer.from(bytes)
        .toString("hex")
        .match(/.{1,32}/g) ?? []
    ).map((row, i) => {
      const offset = (i * 16).toString(16).padStart(4, "0");
      return `${offset}: ${(row.match(/../g) ?? []).join(" ")}`;
    });
    return `${name} ${gpa.toString(16)}\n${rows.join("\n")}\n`;
  });
  return tables.join("\n");
}

function fromText(text: string): AcpiBlob[] {
  return text.split("\n\n").map((part) => {
    const [head = "", ...rows] = part.trim().split("\n");
    const [name = "", gpa = ""] = head.split(" ");
    const hex = rows.map((row) => row.replace(/^[0-9a-f]+:/, "").replaceAll(" ", "")).join("");
    return { name, gpa: BigInt(`0x${gpa}`), bytes: new Uint8Array(Buffer.from(hex, "hex")) };
  });
}

/** Lines that differ, as the explanation has them: what a reviewer wants to see. */
function difference(golden: Uint8Array, made: Uint8Array): string {
  const [before, after] = [golden, made].map((bytes) => explainTable(bytes).split("\n"));
  const gone = (before ?? []).filter((line) => !after?.includes(line));
  const added = (after ?? []).filter((line) => !before?.includes(line));
  return [...gone.map((line) => `- ${line}`), ...added.map((line) => `+ ${line}`)].join("\n");
}

test("golden files are not rewritten on CI", () => {
  expect(UPDATE && process.env["CI"] === "true").toBe(false);
});

test("bytes survive the file format", () => {
  for (const board of Object.values(BOARDS)) {
    const { blobs } = buildTables(board);
    expect(fromText(toText(blobs))).toEqual(blobs);
  }
});

test("a difference names the field", () => {
  const board = BOARDS["one-node"];
  if (board === undefined) throw new Error("no such board");
  const [rsdp] = buildTables(board).blobs;
  const [moved] = buildTables({ ...board, base: 0xe_0040n }).blobs;
  if (rsdp === undefined || moved === undefined) throw new Error("no RSDP");
  expect(difference(rsdp.bytes, moved.bytes)).toContain("+ 0x0018");
  expect(difference(rsdp.bytes, moved.bytes)).toContain("xsdtAddress = 0x");
});

describe.each(Object.entries(BOARDS))("%s", (name, board) => {
  const path = join(FOLDER, `${name}.hex`);
  const { blobs } = buildTables(board);
  if (UPDATE && process.env["CI"] !== "true") writeFileSync(path, toText(blobs));

  test("has golden bytes", () => {
    expect(existsSync(path), `${path} is missing: ${REGENERATE}`).toBe(true);
    const golden = fromText(readFileSync(path, "utf8"));
    expect(blobs.map((blob) => [blob.name, blob.gpa])).toEqual(
      golden.map((blob) => [blob.name, blob.gpa]),
    );
    for (const [i, { name: table, bytes }] of blobs.entries()) {
      const before = golden[i]?.bytes ?? new Uint8Array();
      if (Buffer.compare(before, bytes) === 0) continue;
      throw new Error(`${table} changed:\n${difference(before, bytes)}\n${REGENERATE}`);
    }
  });
});
