// The recorded form of a CPU model: JSON with sorted keys and hexadecimal registers, so that equal
// models are equal text and a person can read a difference. Decoding trusts nothing: the text may
// come from a file or another host.

import { SsihvError } from "../base/errors.ts";
import { allowedMask, FEATURE_WORDS } from "./cpu-features.ts";
import type { CpuModel, XsaveArea } from "./cpu-model.ts";
import type { CpuidEntry } from "./records.ts";

type Json = Record<string, unknown>;

const hex = (value: number): string => `0x${(value >>> 0).toString(16).padStart(8, "0")}`;
const REGISTERS = ["eax", "ebx", "ecx", "edx"] as const;

/** JSON with the keys of every object in order. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  return Object.fromEntries(entries.map(([key, item]) => [key, sorted(item)]));
}

/** A plain object that JSON.stringify writes the same way for equal models. */
export function encodeModel(model: CpuModel): Json {
  const words = Object.entries(model.words).map(([key, value]) => [key, hex(value)] as const);
  const caches = model.caches.map((leaf) => ({
    ...Object.fromEntries(REGISTERS.map((register) => [register, hex(leaf[register])])),
    function: hex(leaf.function),
    index: leaf.index,
    flags: leaf.flags,
  }));
  const plain = sorted({ ...model, words: Object.fromEntries(words), caches });
  return plain as Json;
}

export function modelText(model: CpuModel): string {
  return `${JSON.stringify(encodeModel(model), null, 2)}\n`;
}

function refuse(what: string): never {
  throw new SsihvError("config_invalid", `the recorded CPU model is damaged: ${what}`, {
    hint: "take it from the VM's own record again, or leave it out to use the hosts' own",
  });
}

function object(value: unknown, what: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    refuse(`${what} is not an object`);
  }
  return value as Json;
}

function list(value: unknown, what: string, max: number): unknown[] {
  if (!Array.isArray(value) || value.length > max) refuse(`${what} is not a list of up to ${max}`);
  return value;
}

function text(value: unknown, what: string, max: number): string {
  if (typeof value !== "string" || value.length > max) refuse(`${what} is not a short text`);
  return value;
}

/** A whole number of at most 32 bits, as a number or "0x...". */
function u32(value: unknown, what: string, max = 0xffff_ffff): number {
  const number =
    typeof value === "string" && /^0x[0-9a-f]{1,8}$/i.test(value) ? Number(value) : value;
  if (typeof number !== "number" || !Number.isInteger(number) || number < 0 || number > max) {
    refuse(`${what} is not a whole number from 0 to ${max}`);
  }
  return number;
}

function decodeArea(value: unknown): XsaveArea {
  const area = object(value, "an XSAVE area");
  return {
    component: u32(area["component"], "xsave component", 31),
    size: u32(area["size"], "xsave size", 0x10000),
    offset: u32(area["offset"], "xsave offset", 0x10000),
    flags: u32(area["flags"], "xsave flags", 3),
  };
}

function decodeLeaf(value: unknown): CpuidEntry {
  const leaf = object(value, "a cache leaf");
  const field = (name: string): number => u32(leaf[name], `cache leaf ${name}`);
  return {
    function: field("function"),
    index: field("index"),
    flags: field("flags"),
    eax: field("eax"),
    ebx: field("ebx"),
    ecx: field("ecx"),
    edx: field("edx"),
  };
}

function decodeMsr(value: unknown): { index: number; value: string } {
  const msr = object(value, "an MSR");
  const digits = text(msr["value"], "MSR value", 18);
  if (!/^0x[0-9a-f]{1,16}$/i.test(digits)) refuse("an MSR value is not hexadecimal");
  return { index: u32(msr["index"], "MSR index"), value: digits };
}

/** Checks and takes over a recorded model. */
export function decodeModel(value: unknown): CpuModel {
  const json = object(value, "it");
  if (json["format"] !== 1) refuse(`its format is ${String(json["format"])}, 1 is known`);
  const kind = json["kind"];
  if (kind !== "intel" && kind !== "amd") refuse("its kind is neither intel nor amd");
  const vendor = text(json["vendor"], "vendor", 12);
  if (vendor.length !== 12) refuse("its vendor has not 12 characters");
  const signature = object(json["signature"], "signature");
  const given = object(json["words"], "words");
  const words: Record<string, number> = {};
  for (const word of FEATURE_WORDS) {
    const bits = u32(given[word.key] ?? 0, `word ${word.key}`);
    const unknown = (bits & ~allowedMask(word)) >>> 0;
    if (unknown !== 0) refuse(`word ${word.key} has bits ${hex(unknown)} that are never given`);
    words[word.key] = bits;
  }
  for (const key of Object.keys(given)) {
    if (!(key in words)) refuse(`word ${key} is not known`);
  }
  return {
    format: 1,
    vendor,
    kind,
    signature: {
      family: u32(signature["family"], "family", 0xf + 0xff),
      model: u32(signature["model"], "model", 0xff),
      stepping: u32(signature["stepping"], "stepping", 0xf),
    },
    brand: text(json["brand"], "brand", 48),
    basicMax: u32(json["basicMax"], "basicMax", 0xffff),
    extendedMax: u32(json["extendedMax"], "extendedMax", 0x8000_ffff),
    physicalBits: u32(json["physicalBits"], "physicalBits", 52),
    clflushUnits: u32(json["clflushUnits"], "clflushUnits", 0xff),
    tscKhz: u32(json["tscKhz"], "tscKhz"),
    words,
    xsave: list(json["xsave"], "xsave", 32).map(decodeArea),
    caches: list(json["caches"], "caches", 64).map(decodeLeaf),
    msrs: list(json["msrs"], "msrs", 16).map(decodeMsr),
  };
}
