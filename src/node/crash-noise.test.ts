import { expect, test } from "bun:test";

import { CrashNoiseFilter } from "./crash-noise.ts";

const REPORT = `============================================================
Bun v1.4.5 (a7733435c) Linux x64
Linux Kernel v6.18.44 | glibc v2.36
CPU: sse42 popcnt avx avx2 avx512
Args: "/tmp/ssihv" "engine"
Features: jsc standalone_executable

Elapsed: 15ms | User: 0ms | Sys: 13ms

panic(main thread): Segmentation fault at address 0x181A
oh no: Bun has crashed. This indicates a bug in Bun, not your code.

To send a redacted crash report to Bun's team,
please file a GitHub issue using the link below:

 https://bun.report/1.4.5/l_1a773343EggggC

`;

function filter(text: string, size: number): { shown: string[]; filter: CrashNoiseFilter } {
  const noise = new CrashNoiseFilter();
  const bytes = new TextEncoder().encode(text);
  const shown: string[] = [];
  for (let at = 0; at < bytes.length; at += size) {
    shown.push(...noise.push(bytes.subarray(at, at + size)));
  }
  shown.push(...noise.end());
  return { shown, filter: noise };
}

test("takes the report out, keeps what stands around it, at any chunk size", () => {
  for (const size of [1, 7, 64, 100_000]) {
    const { shown, filter: noise } = filter(`thread panic: index\n${REPORT}after\n`, size);
    expect(shown.filter((line) => line !== "")).toEqual(["thread panic: index", "after"]);
    expect(noise.panic).toBe("Segmentation fault at address 0x181A");
    expect(noise.tail()).not.toContain("Bun");
  }
});

test("a rule that starts no report is passed on", () => {
  const rule = "=".repeat(60);
  expect(filter(`${rule}\ntitle\n${rule}`, 5).shown).toEqual([rule, "title", rule]);
});

test("a report cut short by the process's end shows nothing of itself", () => {
  expect(filter(REPORT.slice(0, 200), 50).shown).toEqual([]);
});

test("the tail is bounded, and a line without end does not grow for ever", () => {
  const { filter: noise } = filter("line\n".repeat(10_000), 1000);
  expect(noise.tail().split("\n").length).toBe(40);
  const long = filter("x".repeat(100_000), 1000);
  expect(long.shown.join("").length).toBeGreaterThan(4096);
  expect(Math.max(...long.shown.map((line) => line.length))).toBeLessThanOrEqual(4096);
});
