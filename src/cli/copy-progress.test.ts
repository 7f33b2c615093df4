import { expect, test } from "bun:test";

import { CopyProgress } from "./copy-progress.ts";

test("a host's copy is told as it begins, now and then, and when it is whole", () => {
  const told: string[] = [];
  let now = 0;
  const output = { copying: (...words: unknown[]) => void told.push(words.join(" ")) };
  const progress = new CopyProgress(output, () => now);
  for (const bytes of [0, 10, 20, 30, 40]) {
    progress.copying("a", bytes, 40);
    now += 900;
  }
  progress.copying("b", 0, 40);
  expect(told).toEqual(["a 0 40", "a 30 40", "a 40 40", "b 0 40"]);
});
