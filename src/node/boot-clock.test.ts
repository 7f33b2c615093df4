import { expect, test } from "bun:test";

import { BootClock } from "./boot-clock.ts";

const LINE = "[    2.1] Run /init as init process\r\n";

test("sees the line at any split, once", () => {
  for (let at = 0; at <= LINE.length; at++) {
    const clock = new BootClock();
    clock.start(1000);
    const chunks = ["noise ".repeat(1000), LINE.slice(0, at), LINE.slice(at), LINE];
    const seen = chunks.map((text, i) => clock.push(new TextEncoder().encode(text), 2000 + i));
    expect(seen.filter(Boolean).length).toBe(1);
    expect(clock.seconds).toBeCloseTo(1, 1);
  }
});

test("a quiet or unstarted guest has no boot time", () => {
  const clock = new BootClock();
  expect(clock.push(new TextEncoder().encode(LINE), 5)).toBe(false);
  clock.start(1);
  clock.start(4);
  expect(clock.push(new TextEncoder().encode("Run init as init process"), 5)).toBe(false);
  expect(clock.seconds).toBeUndefined();
});
