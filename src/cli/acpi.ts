// `ssihv acpi dump|explain`: the ACPI tables a VM would get, as files or hex, and any ACPI table
// field by field. acpiDump and acpiExplain are pure; the commands below them read and write files.

import { closeSync, mkdirSync, openSync, readSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

import { buildCommand, buildRouteMap, type FlagParametersForType } from "@stricli/core";

import { explainTable } from "../../acpi/explain.ts";
import type { AcpiBlob } from "../../acpi/tables.ts";
import { SsihvError } from "../base/errors.ts";
import { suggest } from "../base/suggest.ts";
import { vmAcpiTables } from "../node/vm-acpi.ts";
import { splitOverNodes } from "../node/vm-request.ts";
import type { CliContext } from "./context.ts";
import { RUN_DEFAULTS, sizeFlag, wholeNumber } from "./run-options.ts";

export interface AcpiOptions {
  readonly nodes: number;
  /** Absent: one per node. */
  readonly cpus?: number;
  readonly memory: bigint;
  /** One table by its signature; absent: all. */
  readonly table?: string;
}

/** The names people use for tables whose signature is another. */
const NICKNAMES: Readonly<Record<string, string>> = { FADT: "FACP", MADT: "APIC" };
/** No ACPI table is larger; a file that is has been given by mistake. */
const FILE_BYTES_MAX = 16 << 20;

function chosen(blobs: readonly AcpiBlob[], table: string | undefined): readonly AcpiBlob[] {
  if (table === undefined) return blobs;
  const upper = table.toUpperCase();
  const wanted = NICKNAMES[upper] ?? upper;
  const found = blobs.filter(({ name }) => name === wanted);
  if (found.length > 0) return found;
  const names = blobs.map(({ name }) => name);
  const near = suggest(wanted, names);
  throw new SsihvError("flag_invalid", `--table: there is no table "${table.slice(0, 40)}"`, {
    hint: near === undefined ? `one of ${names.join(", ")}` : `--table ${near}`,
  });
}

/** The tables of a VM of this shape, in address order. */
export function acpiDump(options: AcpiOptions): readonly AcpiBlob[] {
  const { nodes, cpus = nodes, memory, table } = options;
  return chosen(vmAcpiTables(splitOverNodes(nodes, cpus, memory)), table);
}

const ROW = 16;

/** The text form of acpidump, which acpixtract and iasl's tools read. */
export function acpiHex(blobs: readonly AcpiBlob[]): string {
  const tables = blobs.map(({ name, gpa, bytes }) => {
    const rows = [`${name} @ 0x${gpa.toString(16).toUpperCase().padStart(16, "0")}`];
    for (let at = 0; at < bytes.length; at += ROW) {
      const row = Array.from(bytes.subarray(at, at + ROW));
      const hex = row.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
      const text = row.map((byte) =>
        byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".",
      );
      const offset = at.toString(16).toUpperCase().padStart(8, "0");
      rows.push(`    ${offset}: ${hex.padEnd(ROW * 3 - 1)}  ${text.join("")}`);
    }
    return `${rows.join("\n")}\n`;
  });
  return `${tables.join("\n")}\n`;
}

/** The same tables, or one given as bytes, in words. */
export function acpiExplain(what: AcpiOptions | { readonly bytes: Uint8Array }): string {
  if ("bytes" in what) return `${explainTable(what.bytes)}\n`;
  const tables = acpiDump(what).map(({ gpa, bytes }) => {
    return `at guest address 0x${gpa.toString(16)}\n${explainTable(bytes)}\n`;
  });
  return tables.join("\n");
}

function fileError(action: string, path: string, cause: unknown): SsihvError {
  return new SsihvError("flag_invalid", `cannot ${action} ${path}`, {
    hint: "check the path and its permissions (tables under /sys need root)",
    cause,
  });
}

/** At most FILE_BYTES_MAX bytes and one more: devices and pipes have no size to ask for. */
function readTable(path: string): Uint8Array {
  const bytes = new Uint8Array(FILE_BYTES_MAX + 1);
  let length = 0;
  try {
    const file = openSync(path, "r");
    try {
      for (let got = -1; got !== 0 && length < bytes.length; length += got) {
        got = readSync(file, bytes, length, bytes.length - length, null);
      }
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw fileError("read", path, error);
  }
  if (length <= FILE_BYTES_MAX) return bytes.slice(0, length);
  throw new SsihvError("acpi_invalid", `${path} is larger than any ACPI table`, {
    hint: "give a binary ACPI table, as in /sys/firmware/acpi/tables",
  });
}

function explainFile(path: string): string {
  const bytes = readTable(path);
  try {
    return acpiExplain({ bytes });
  } catch (error) {
    if (!(error instanceof SsihvError)) throw error;
    const { code, hint, message } = error;
    throw new SsihvError(code, `${path}: ${message}`, hint === undefined ? {} : { hint });
  }
}

function writeTables(folder: string, blobs: readonly AcpiBlob[]): string {
  const lines = blobs.map(({ name, bytes }) => {
    const path = join(folder, `${name}.dat`);
    try {
      mkdirSync(folder, { recursive: true });
      writeFileSync(path, bytes);
    } catch (error) {
      throw fileError("write", path, error);
    }
    return `${path}: ${bytes.length} bytes`;
  });
  return `${lines.join("\n")}\n`;
}

const SHAPE_FLAGS: FlagParametersForType<AcpiOptions, CliContext> = {
  nodes: {
    kind: "parsed",
    parse: wholeNumber("--nodes", 1, 8),
    default: String(RUN_DEFAULTS.nodes),
    brief: "NUMA nodes of the VM",
  },
  cpus: {
    kind: "parsed",
    parse: wholeNumber("--cpus", 1, 512),
    optional: true,
    brief: "vCPUs in all [default: one per node]",
  },
  memory: {
    kind: "parsed",
    parse: sizeFlag("--memory"),
    default: "512M",
    brief: "RAM in all: 512M, 4G",
  },
  table: {
    kind: "parsed",
    parse: String,
    optional: true,
    brief: "only this one: FACP, APIC, DSDT, SRAT, SLIT, XSDT, FACS, RSDP",
    placeholder: "name",
  },
};

interface DumpFlags extends AcpiOptions {
  readonly output?: string;
}

const dumpCommand = buildCommand<DumpFlags, [], CliContext>({
  func(this: CliContext, { output, ...shape }: DumpFlags): void {
    const blobs = acpiDump(shape);
    const text = output === undefined ? acpiHex(blobs) : writeTables(output, blobs);
    this.process.stdout.write(text);
  },
  docs: {
    brief: "the ACPI tables that a VM of this shape gets",
    fullDescription: `Writes every table to DIR/NAME.dat, or all as hex that acpixtract reads.

Examples:
  ssihv acpi dump --nodes 2 --cpus 4 --memory 4G --output tables && iasl -d tables/DSDT.dat
  ssihv acpi dump --table SLIT --nodes 2`,
  },
  parameters: {
    flags: {
      ...SHAPE_FLAGS,
      output: {
        kind: "parsed",
        parse: String,
        optional: true,
        brief: "folder for the files; it is made if absent",
        placeholder: "dir",
      },
    },
  },
});

const explainCommand = buildCommand<AcpiOptions, string[], CliContext>({
  func(this: CliContext, shape: AcpiOptions, ...files: string[]): void {
    if (files.length === 0) {
      this.process.stdout.write(acpiExplain(shape));
      return;
    }
    const texts = files.map((path) => {
      return (files.length === 1 ? "" : `== ${basename(path)}\n`) + explainFile(path);
    });
    this.process.stdout.write(texts.join("\n"));
  },
  docs: {
    brief: "ACPI tables field by field: our own, or any file's",
    fullDescription: `Tells every field's offset, bytes, name, value and meaning.
AML is shown as an outline. With FILE it explains that table; without, those of a VM of this shape.

Examples:
  ssihv acpi explain --nodes 2 --cpus 4 --table SRAT
  sudo ssihv acpi explain /sys/firmware/acpi/tables/APIC`,
  },
  parameters: {
    flags: SHAPE_FLAGS,
    positional: {
      kind: "array",
      parameter: { parse: String, brief: "binary ACPI tables", placeholder: "file" },
    },
  },
});

export const acpiCommands = buildRouteMap<"dump" | "explain", CliContext>({
  routes: { dump: dumpCommand, explain: explainCommand },
  docs: { brief: "show the ACPI tables of a VM, or explain any" },
});
