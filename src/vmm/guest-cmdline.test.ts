import { expect, test } from "bun:test";
import { GUEST_OPTIONS, guestCmdline } from "./guest-cmdline.ts";

test("the user's options come last, so that they win", () => {
  expect(guestCmdline(1)).toBe("console=ttyS0");
  expect(guestCmdline(1, " console=tty0 quiet ")).toBe("console=ttyS0 console=tty0 quiet");
  expect(guestCmdline(2, "nokaslr").startsWith("console=ttyS0 ")).toBe(true);
  expect(guestCmdline(2, "nokaslr").endsWith(" nokaslr")).toBe(true);
});

test("every default option is one word with a reason", () => {
  for (const { text, why } of Object.values(GUEST_OPTIONS).flat()) {
    expect(text).toMatch(/^[\w.=,-]+$/);
    expect(why.length).toBeGreaterThan(10);
    expect(guestCmdline(2)).toContain(text);
  }
});
