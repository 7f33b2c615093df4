import { expect, test } from "bun:test";
import { foldersOf, optionsIn, optionsText } from "./options-file.ts";

const WORDS = ["--state", "/srv/my state", "--memory", "64G", "--lane", "fd00::1", "--memory-only"];

test("options are read back as they were written", () => {
  const text = optionsText("node", WORDS);
  expect(text).toEndWith(
    `SSIHV_OPTIONS="--state '/srv/my state' --memory 64G --lane fd00::1 --memory-only"\n`,
  );
  expect(optionsIn(text)).toEqual(WORDS);
  expect(optionsIn(optionsText("coordinator", []))).toEqual([]);
});

test("a file that somebody wrote in another way is not taken for ours", () => {
  expect(optionsIn("SSIHV_OPTIONS=--memory 64G\n")).toBeUndefined();
  expect(optionsIn('SSIHV_OPTIONS="--state \\"x\\""\n')).toBeUndefined();
  expect(optionsIn("")).toBeUndefined();
});

test("what systemd would read otherwise is refused by name", () => {
  for (const word of ["a'b", 'a"b', "a\\b", "$HOME", "`id`", "a\nb"]) {
    expect(() => optionsText("node", ["--state", word])).toThrow("cannot be kept in a unit");
  }
});

test("folders that options name are known", () => {
  expect(foldersOf(WORDS)).toEqual(["/srv/my state"]);
  expect(foldersOf(["--socket", "/srv/api/sock", "--metrics", "127.0.0.1:1"])).toEqual([
    "/srv/api",
  ]);
});
