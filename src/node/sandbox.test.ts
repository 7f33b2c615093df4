import { afterEach, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { giveBack, sandboxFor, sandboxWords } from "./sandbox.ts";

const usual = process.env["TMPDIR"];
afterEach(() => {
  if (usual === undefined) delete process.env["TMPDIR"];
  else process.env["TMPDIR"] = usual;
});

test("root's engines get a user that no account has, each VM its own", () => {
  process.env["TMPDIR"] = "/tmp";
  const users = [1, 2, 3].map(() => sandboxFor("auto", "own folder", true).user ?? 0);
  expect(new Set(users).size).toBe(3);
  for (const user of users) {
    expect(user).toBeGreaterThanOrEqual(0x7000_0000);
    // -1 is no user.
    expect(user).toBeLessThan(0xffff_ffff);
  }
  const [user = 0] = users;
  expect(sandboxWords({ mode: "auto", user })).toEqual([
    ...["--sandbox", "auto", "--user", String(user)],
  ]);
});

test("a user is given again when its VM has ended, and not before", () => {
  const first = sandboxFor("auto", "none", true);
  const others = Array.from({ length: 300 }, () => {
    const other = sandboxFor("auto", "none", true);
    giveBack(other);
    return other.user;
  });
  expect(others).not.toContain(first.user);
  giveBack(first);
  expect(
    Array.from({ length: 256 }, () => {
      const other = sandboxFor("auto", "none", true);
      giveBack(other);
      return other.user;
    }),
  ).toContain(first.user);
});

test("engines stay who they are where they could not reach each other, and why is said", () => {
  const closed = mkdtempSync(join(tmpdir(), "ssihv-closed-"));
  try {
    chmodSync(closed, 0o700);
    process.env["TMPDIR"] = closed;
    const noUser = `${closed} is closed to other users`;
    expect(sandboxFor("auto", "own folder", true)).toEqual({ mode: "auto", noUser });
    expect(() => sandboxFor("required", "own folder", true)).toThrow(noUser);
    // Lanes are TCP: no folder matters.
    expect(sandboxFor("required", "none", true).user).toBeGreaterThan(0);
    expect(sandboxFor("auto", "given", true).noUser).toContain("its user's choice");
  } finally {
    rmSync(closed, { recursive: true });
  }
});

test("without root there is no other user, and turned off there is nothing", () => {
  expect(sandboxFor("required", "none", false)).toEqual({
    mode: "required",
    noUser: "ssihv was not started by root",
  });
  expect(sandboxFor("off", "none", true)).toEqual({ mode: "off" });
  expect(sandboxWords({ mode: "off" })).toEqual(["--sandbox", "off"]);
});
