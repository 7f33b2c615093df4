// `ssihv certs` as a user types it: what it says, what it leaves, and its statuses.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { certsFolder } from "./certs-folder.ts";
import { mainHere } from "./main-here.fixture.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-certs-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

const certs = (...args: string[]) => mainHere("certs", ...args);

test("init, issue, list and rotate in one folder", async () => {
  const dir = join(base, "pki");
  const made = await certs("init", "--dir", dir, "--host", "10.0.0.1", "--host", "c.example");
  expect([made.err, made.status]).toEqual(["", 0]);
  expect(made.out.split("\n").map((line) => line.split(/ +/).slice(0, 2).join(" "))).toEqual([
    ...["NAME ROLE", "ca ca", "coordinator coordinator", "admin operator", ""],
  ]);
  expect(made.out).toContain("10.0.0.1,c.example");
  const issued = await certs(
    "issue",
    "grafana",
    "--role",
    "read-only",
    "--days",
    "20",
    "--dir",
    dir,
  );
  expect(issued.status).toBe(0);
  expect(issued.err).toContain(`bring ${dir}/grafana.pem and ${dir}/ca.pem to its holder`);

  const before = JSON.parse((await certs("list", "--dir", dir, "--json")).out);
  expect(before.map(({ name, days }: { name: string; days: number }) => [name, days])).toEqual([
    ["ca", 3649],
    ["admin", 364],
    ["coordinator", 364],
    ["grafana", 19],
  ]);
  expect((await certs("list", "--dir", dir)).err).toMatch(
    /^ssihv: .*grafana\.pem expires on \d{4}-\d\d-\d\d, in 19 day\(s\): ssihv certs rotate\n$/,
  );
  const key = readFileSync(join(dir, "grafana.pem"), "utf8");
  expect((await certs("rotate", "grafana", "--dir", dir)).status).toBe(0);
  expect(readFileSync(join(dir, "grafana.pem"), "utf8")).not.toBe(key);
  const rotated = await certs("rotate", "--ca", "--dir", dir, "--json");
  expect(JSON.parse(rotated.out).map(({ name }: { name: string }) => name)).toEqual([
    ...["ca", "ca", "admin", "coordinator", "grafana"],
  ]);
  const dropped = JSON.parse((await certs("rotate", "--drop-old", "--dir", dir, "--json")).out);
  expect(dropped.filter(({ role }: { role: string }) => role === "ca").length).toBe(1);
  // No private key is ever printed.
  for (const { out, err } of [made, issued, rotated]) expect(out + err).not.toContain("PRIVATE");
});

test("what is wrong is said with status 2", async () => {
  const dir = join(base, "none");
  const cases: [string[], string][] = [
    [["list", "--dir", dir], "holds no CA"],
    [["issue", "bob", "--dir", dir], "--role needs a value"],
    [["issue", "bob", "--role", "king", "--dir", dir], "is not one of operator"],
    [["init", "--host", "not a host"], "is no host"],
    [["init", "--days", "0"], "--days"],
    [["rotate", "bob", "--ca", "--dir", dir], "about all certificates"],
  ];
  for (const [args, words] of cases) {
    const { status, err } = await certs(...args);
    expect(err).toContain(words);
    expect(status).toBe(2);
  }
});

test("the folder without --dir", () => {
  expect(certsFolder({}, 0)).toBe("/etc/ssihv/certs");
  expect(certsFolder({ XDG_CONFIG_HOME: "/home/u/.c" }, 1000)).toBe("/home/u/.c/ssihv/certs");
  expect(certsFolder({ SSIHV_CERTS: "/x" }, 0)).toBe("/x");
});
