// A YAML file against its schema: every mistake in the file is reported at once, each with file,
// line and column and with what should have been there. An unknown key is a mistake, never ignored.

import { readFileSync } from "node:fs";
import type { Static, TSchema } from "@sinclair/typebox";
import { type ValueError, ValueErrorType } from "@sinclair/typebox/errors";
import { Value } from "@sinclair/typebox/value";

import { SsihvError } from "../base/errors.ts";
import { suggest } from "../base/suggest.ts";
import { type Mistake, type Path, YamlSource } from "./yaml-source.ts";

export interface SchemaWords {
  /** Keys of each section by its name; "" is the whole file. */
  readonly keys: Readonly<Record<string, readonly string[]>>;
  /** What a value at a key should have been, where the schema's own words say too little. */
  readonly expected: Readonly<Record<string, string>>;
  /** What the file should have been. */
  readonly whole: string;
  /** What to do about mistakes. */
  readonly hint: string;
}

export function show(path: Path): string {
  return path
    .map((part) => (typeof part === "number" ? `[${part}]` : `.${part}`))
    .join("")
    .replace(/^\./, "");
}

function describe(value: unknown): string {
  if (value === null) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "a mapping";
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 40 ? `${text.slice(0, 40)}...` : text;
}

function pathOf(pointer: string): Path {
  return pointer
    .split("/")
    .slice(1)
    .map((part) =>
      /^\d+$/.test(part) ? Number(part) : part.replaceAll("~1", "/").replaceAll("~0", "~"),
    );
}

function mistakeOf(error: ValueError, source: YamlSource, words: SchemaWords): Mistake {
  const path = pathOf(error.path);
  const last = String(path.findLast((part) => typeof part === "string") ?? "");
  if (error.type === ValueErrorType.ObjectAdditionalProperties) {
    const section = path.length === 1 ? "" : String(path[0]);
    const near = suggest(last, words.keys[section] ?? []);
    const hint = near === undefined ? "" : `; did you mean ${near}?`;
    return { offset: source.offsetOfKey(path), text: `unknown key ${show(path)}${hint}` };
  }
  if (error.type === ValueErrorType.ObjectRequiredProperty) {
    const text = `${show(path)} is missing: expected ${words.expected[last] ?? "a value"}`;
    return { offset: source.offsetOf(path.slice(0, -1)), text };
  }
  const where = path.length === 0 ? "the file" : show(path);
  const item = last === "vms" ? "a mapping of a VM's settings" : "a mapping of a node's settings";
  const node = typeof path[path.length - 1] === "number" ? item : undefined;
  const expected = node ?? words.expected[last] ?? words.whole;
  return {
    offset: source.offsetOf(path),
    text: `${where}: expected ${expected}, found ${describe(error.value)}`,
  };
}

/** The schema's complaints, one per place: a missing key also complains about its type. */
function schemaMistakes(source: YamlSource, schema: TSchema, words: SchemaWords): Mistake[] {
  const seen = new Set<string>();
  const mistakes: Mistake[] = [];
  for (const error of Value.Errors(schema, source.value)) {
    if (seen.has(error.path)) continue;
    seen.add(error.path);
    mistakes.push(mistakeOf(error, source, words));
  }
  return mistakes;
}

/** Turns text into values; what a parser refuses becomes a mistake at its place. */
export class Reader {
  private readonly mistakes: Mistake[] = [];
  private readonly source: YamlSource;

  constructor(source: YamlSource) {
    this.source = source;
  }

  at<T>(path: Path, text: string, parse: (text: string, what: string) => T, otherwise: T): T {
    try {
      return parse(text, show(path));
    } catch (error) {
      if (!(error instanceof SsihvError)) throw error;
      this.blame(path, `${error.message}${error.hint === undefined ? "" : `; ${error.hint}`}`);
      return otherwise;
    }
  }

  /** Where it stands: "file:line:col". */
  place(path: Path): string {
    return this.source.place(this.source.offsetOf(path));
  }

  blame(path: Path, text: string): void {
    this.mistakes.push({ offset: this.source.offsetOf(path), text });
  }

  /** Throws what was blamed, if anything was. */
  refuseMistakes(): void {
    if (this.mistakes.length > 0) this.source.refuse(this.mistakes);
  }
}

/** The text as the schema has it, and a reader for what its values say. */
export function readYaml<T extends TSchema>(
  text: string,
  file: string,
  schema: T,
  words: SchemaWords,
): { raw: Static<T>; reader: Reader } {
  const source = new YamlSource(text, file, words.hint);
  const mistakes = schemaMistakes(source, schema, words);
  if (mistakes.length > 0) source.refuse(mistakes);
  return { raw: source.value as Static<T>, reader: new Reader(source) };
}

/** The text of the file that `flag` names. */
export function yamlText(file: string, flag: string, hint: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    const why = cause instanceof Error && "code" in cause ? String(cause.code) : "unreadable";
    const message = `${flag}: ${file} cannot be read (${why})`;
    throw new SsihvError("config_invalid", message, { hint, cause });
  }
}
