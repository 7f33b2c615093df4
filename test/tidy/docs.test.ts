// The documents do not rot: commands and flags that README.md and docs/ name are those of the
// command line, files of VMs parse, metrics and alerts speak of what is told, links lead somewhere.

import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";

import { mainHere } from "../../src/cli/main-here.fixture.ts";
import { parseVmConfig } from "../../src/config/vm-config.ts";
import { metrics } from "../../tools/metrics-doc.ts";
import { checkout, sources } from "./sources.ts";

const documents = sources(/^(README|docs\/[A-Z]+)\.md$/);

/** Lines of code blocks: indented by four spaces, as these documents have them. */
function codeLines(text: string): string[] {
  const joined = text.replaceAll(/ \\\n\s*/g, " ");
  return joined.split("\n").flatMap((line) => (line.startsWith("    ") ? [line.slice(4)] : []));
}

/** A call after the line's begin, a pipe or the like; its words end where the shell's would. */
const CALL = /(?:^|[|;&(]|<\()\s*(?:dist\/)?ssihv((?: [^|;&)<>]*)?)(?=$|[|;&)<> ])/g;

/** Calls of ssihv in code blocks and between backticks: the words after its name. */
function calls(text: string): string[][] {
  const inline = [...text.matchAll(/`([^`\n]*)`/g)].map(([, code = ""]) => code);
  return [...codeLines(text), ...inline].flatMap((line) => {
    // What is said about a line stands behind a gap or a #.
    const code = line.replace(/ {3,}.*$/, "").replace(/(^|\s)#.*$/, "");
    return [...code.matchAll(CALL)].map(([, words = ""]) => {
      return words.trim().split(/\s+/).filter(Boolean);
    });
  });
}

const helps = new Map<string, Promise<{ status: number; out: string }>>();
function help(...path: readonly string[]) {
  const key = path.join(" ");
  const known = helps.get(key) ?? mainHere(...path, "--help");
  helps.set(key, known);
  return known;
}

/** What is wrong with a call, as its command's own help has it; undefined: nothing. */
async function wrong(words: readonly string[]): Promise<string | undefined> {
  const names = words.filter((word) => !word.startsWith("-"));
  const [command] = names;
  if (words[0] === "COMMAND" || words[0] === "--help" || command === undefined) return undefined;
  if (command.endsWith(",")) {
    // Several at a time.
    const each = names.map((name) => wrong([name.replace(",", "")]));
    return (await Promise.all(each)).find((why) => why !== undefined);
  }
  // The engine is no command for users: it is told of as a process.
  if (command === "engine") return undefined;
  const first = await help(command);
  if (first.status !== 0) return `no command ${command}`;
  const isGroup = /^COMMANDS$/m.test(first.out);
  const [, second] = names;
  if (isGroup && second === undefined) return undefined;
  const path = isGroup && second !== undefined ? [command, second] : [command];
  const { status, out } = await help(...path);
  if (status !== 0) return `no command ${path.join(" ")}`;
  const flags = words.filter((word) => /^-{1,2}[a-zA-Z]/.test(word));
  const unknown = flags.find((flag) => {
    const name = flag.replace(/=.*/, "").replaceAll(/[.,]$/g, "");
    return !new RegExp(`(^|[\\s\\[])${name}(?=[\\s\\]])`, "m").test(out);
  });
  return unknown === undefined ? undefined : `${path.join(" ")} has no ${unknown}`;
}

/** An alert's expression, and its lines up to what it says. */
const EXPR = /expr: (.*)\n((?: +.*\n)*? +summary: .*)$/gm;
const FILES = /\b((?:docs\/)?[A-Z]+\.md|[a-z]+\/[a-z]+\.json)\b/g;

describe("documents", () => {
  test("commands and their flags are those of the command line", async () => {
    const found: string[] = [];
    let count = 0;
    for (const { path, text } of documents) {
      for (const words of calls(text)) {
        count += 1;
        const why = await wrong(words);
        if (why !== undefined) found.push(`${path}: ssihv ${words.join(" ")}: ${why}`);
      }
    }
    expect(found).toEqual([]);
    expect(count).toBeGreaterThan(100);
  });

  test("files of VMs are taken as they are", () => {
    const files = documents.flatMap(({ path, text }) => {
      const blocks = text.matchAll(/^ {4}cat >(\w+\.yaml) <<END\n((?: {4}.*\n)*?) {4}END$/gm);
      return [...blocks].map(([, file = "", body = ""]) => ({
        name: `${path}: ${file}`,
        text: body.replaceAll(/^ {4}/gm, ""),
      }));
    });
    expect(files.length).toBeGreaterThanOrEqual(1);
    for (const { name, text } of files) {
      expect(parseVmConfig(text, name).nodes.length).toBeGreaterThan(1);
    }
  });

  test("metrics and the labels of alerts are those that are told", async () => {
    const { agents, coordinator } = await metrics();
    const known = new Map([...agents, ...coordinator].map((each) => [each.name, each]));
    const texts = [...documents, ...sources(/^docs\/alerts\.yml$/)];
    expect(texts.some(({ path }) => path === "docs/alerts.yml")).toBe(true);
    for (const { path, text } of texts) {
      for (const [name] of text.matchAll(/\bssihv_[a-z_]+/g)) {
        expect([path, name, known.has(name)]).toEqual([path, name, true]);
      }
    }
    const alerts = texts.find(({ path }) => path === "docs/alerts.yml")?.text ?? "";
    for (const [, expr = "", words = ""] of alerts.matchAll(EXPR)) {
      const named = [...expr.matchAll(/\bssihv_[a-z_]+/g)].map(([name]) => known.get(name));
      const labels = named.flatMap((each) => each?.labels ?? []);
      for (const [, label = ""] of words.matchAll(/\$labels\.(\w+)/g)) {
        expect([expr, label, labels.includes(label)]).toEqual([expr, label, true]);
      }
    }
  });

  test("every alert has a line in the operator's guide, and the other way round", async () => {
    const alerts = await Bun.file(`${checkout}/docs/alerts.yml`).text();
    const guide = await Bun.file(`${checkout}/docs/OPERATIONS.md`).text();
    const named = [...alerts.matchAll(/alert: (\w+)/g)].map(([, name]) => name).sort();
    const told = [...guide.matchAll(/^\| (Ssihv\w+) \|/gm)].map(([, name]) => name).sort();
    expect(told).toEqual(named);
  });

  test("files and sections that are named exist", () => {
    for (const { path, text } of documents) {
      const anchors = [...text.matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) =>
        title.toLowerCase(),
      );
      for (const [, anchor = ""] of text.matchAll(/\]\(#([^)]*)\)/g)) {
        expect([path, anchor, anchors.includes(anchor)]).toEqual([path, anchor, true]);
      }
      for (const [, file = ""] of text.matchAll(FILES)) {
        const at = [checkout, join(checkout, dirname(path))].some((folder) => {
          return existsSync(join(folder, file));
        });
        expect([path, file, at]).toEqual([path, file, true]);
      }
    }
  });
});

test("the check itself sees a command, a flag and a metric that are none", async () => {
  const text =
    "`ssihv vm show`\n\n    ssihv vm strat demo && ssihv top --colour | less # ssihv no\n";
  expect(calls(text)).toEqual([
    ["vm", "strat", "demo"],
    ["top", "--colour"],
    ["vm", "show"],
  ]);
  expect(await wrong(["vm", "strat"])).toBe("no command vm strat");
  expect(await wrong(["top", "--colour"])).toBe("top has no --colour");
  expect(await wrong(["vm", "create", "-f", "x", "--start"])).toBeUndefined();
});
