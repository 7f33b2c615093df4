import { expect, test } from "bun:test";
import { SHELLS } from "./completion.ts";
import { mainHere } from "./main-here.fixture.ts";

async function proposed(...words: string[]): Promise<string[]> {
  const { status, out, err } = await mainHere("complete", "--", ...words);
  expect([status, err]).toEqual([0, ""]);
  return out.split("\n").flatMap((line) => line.split("\t")[0] || []);
}

test("commands, subcommands, flags and their values, by how they begin", async () => {
  expect(await proposed("")).toEqual(expect.arrayContaining(["run", "vm", "top", "completion"]));
  expect(await proposed("")).not.toContain("engine");
  expect(await proposed("vm", "sh")).toEqual(["show"]);
  expect(await proposed("run", "--mem")).toEqual(expect.arrayContaining(["--memory"]));
  expect(await proposed("run", "--page-tables", "s")).toEqual(["strict"]);
  expect(await proposed("completion", "")).toEqual([...SHELLS]);
});

test("nothing where only the user knows, or nothing is right", async () => {
  expect(await proposed("run", "--kernel", "/boot/")).toEqual([]);
  expect(await proposed("nonsense", "x")).toEqual([]);
});

test("a script for each shell, an error for others", async () => {
  for (const shell of SHELLS) {
    const { status, out } = await mainHere("completion", shell);
    expect([status, out.includes("ssihv complete -- ")]).toEqual([0, true]);
  }
  const { status, err } = await mainHere("completion", "tcsh");
  expect([status, err]).toEqual([2, expect.stringContaining('no completion for "tcsh"')]);
});
