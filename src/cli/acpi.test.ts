import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { acpiDump, acpiExplain, acpiHex } from "./acpi.ts";
import { mainHere } from "./main-here.fixture.ts";

const GIB = 1n << 30n;
const folder = mkdtempSync(join(tmpdir(), "ssihv-acpi-"));
afterAll(() => rmSync(folder, { recursive: true }));

const ssihv = (...args: string[]) => mainHere("acpi", ...args);

describe("acpiDump", () => {
  test("gives the tables of that shape", () => {
    const blobs = acpiDump({ nodes: 2, cpus: 3, memory: 5n * GIB });
    const names = ["RSDP", "FACS", "DSDT", "FACP", "APIC", "SRAT", "SLIT", "XSDT"];
    expect(blobs.map(({ name }) => name)).toEqual(names);
    const srat = acpiExplain({ bytes: blobs[5]?.bytes ?? new Uint8Array() });
    expect(srat.match(/Processor local APIC affinity/g)?.length).toBe(3);
    // Below 640 KiB, from 1 MiB, node 1 below the hole and above 4 GiB.
    expect(srat.match(/Memory affinity: type 1/g)?.length).toBe(4);
    expect(srat).toContain("base = 0x100000000");
  });

  test("one table by signature or by the name people use", () => {
    const one = (table: string) => acpiDump({ nodes: 1, memory: GIB, table })[0]?.name;
    expect([one("slit"), one("MADT"), one("fadt")]).toEqual(["SLIT", "APIC", "FACP"]);
    expect(() => one("SLITT")).toThrow(SsihvError);
  });

  test("one vCPU per node unless told", () => {
    const madt = acpiExplain({ nodes: 3, memory: GIB, table: "APIC" });
    expect(madt.match(/Processor local APIC: type 0/g)?.length).toBe(3);
  });
});

test("the hex form holds every byte once", () => {
  const blobs = acpiDump({ nodes: 1, memory: GIB });
  const parts = acpiHex(blobs).trimEnd().split("\n\n");
  expect(parts.length).toBe(blobs.length);
  for (const [i, part] of parts.entries()) {
    const [head, ...rows] = part.split("\n");
    expect(head).toBe(
      `${blobs[i]?.name} @ 0x${blobs[i]?.gpa.toString(16).toUpperCase().padStart(16, "0")}`,
    );
    const hex = rows.map((row) => row.slice(14, 14 + 47).replaceAll(" ", "")).join("");
    expect(hex.toLowerCase()).toBe(Buffer.from(blobs[i]?.bytes ?? []).toString("hex"));
  }
});

describe("ssihv acpi", () => {
  test("dump --output writes a file per table, which explain reads", async () => {
    const output = join(folder, "deep/tables");
    const { status, out } = await ssihv("dump", "--nodes", "2", "--output", output);
    expect(status).toBe(0);
    expect(readdirSync(output).length).toBe(8);
    expect(out).toContain(`${join(output, "FACP.dat")}: 276 bytes\n`);
    const [facp] = acpiDump({ nodes: 2, memory: 512n << 20n, table: "FACP" });
    expect([...readFileSync(join(output, "FACP.dat"))]).toEqual([...(facp?.bytes ?? [])]);
    const explained = await ssihv("explain", join(output, "SLIT.dat"), join(output, "APIC.dat"));
    expect(explained.status).toBe(0);
    expect(explained.out).toContain("== SLIT.dat\nSLIT: System locality distances");
    expect(explained.out).toContain("== APIC.dat\nAPIC: Interrupt controllers");
  });

  test("explain without a file tells our own tables and where they lie", async () => {
    const { status, out } = await ssihv("explain", "--table", "FACP");
    expect(status).toBe(0);
    expect(out).toStartWith("at guest address 0xe");
    expect(out).toContain("RESET_REG_SUP");
  });

  const junk = join(folder, "junk");
  writeFileSync(junk, "no table at all, but long enough for a header\x1b[2J");
  test.each([
    [["dump", "--table", "SLTI"], "--table SLIT"],
    [["dump", "--nodes", "0"], "--nodes"],
    [["dump", "--nodes", "2", "--cpus", "1"], "--cpus 1 with --nodes 2"],
    [["dump", "--memory", "1M"], "memory"],
    [["dump", "--output", "/dev/null/x"], "cannot write /dev/null/x/RSDP.dat"],
    [["explain", "/none/such"], "cannot read /none/such"],
    [["explain", folder], `cannot read ${folder}`],
    [["explain", junk], `${junk}: "no t" is no table signature`],
    [["explain", "/dev/null"], "the table is empty"],
    [["explain", "/dev/zero"], "larger than any ACPI table"],
    [["dump", "--tabel", "FACP"], "--table"],
  ])("%p is refused in words", async (args, words) => {
    const { status, out, err } = await ssihv(...args);
    expect(status).toBe(2);
    expect(out).toBe("");
    expect(err).toContain(words);
    expect(err).toContain("try: ");
    expect(err).not.toContain("\x1b");
    expect(err).not.toMatch(/\n +at /);
  });

  test.each([["dump"], ["explain"]])("%s --help has examples", async (command) => {
    const { status, out } = await ssihv(command, "--help");
    expect(status).toBe(0);
    expect(out).toContain(`ssihv acpi ${command} `);
    expect(out).toContain("Examples:");
  });
});
