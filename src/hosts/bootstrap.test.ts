// The script that hosts run before they have our binary, under this machine's sh, with a few lines
// in the binary's place.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { bootstrapScript, heard, MARK, payloadOf } from "./bootstrap.ts";

const folder = mkdtempSync(join(tmpdir(), "ssihv-bootstrap-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const PROGRAM = '#!/bin/sh\necho "$1 runs"\n';
const file = join(folder, "program");
writeFileSync(file, PROGRAM);
const payload = payloadOf(file);

async function bootstrap(home: string, input: string, mounts?: string) {
  const script = bootstrapScript(payload);
  // As the way there has it: the script is within single quotes of another shell.
  const shell = `exec /bin/sh -c '${script}'`;
  const command =
    mounts === undefined
      ? ["sh", "-c", shell]
      : ["unshare", "-m", "sh", "-c", `${mounts} && ${shell}`];
  const child = Bun.spawn(command, {
    env: { PATH: process.env["PATH"], HOME: home },
    stdin: new TextEncoder().encode(input),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return {
    said: out
      .trim()
      .split("\n")
      .map((line) => line.replace(`${MARK} `, "")),
    err,
  };
}

const ON = "on Linux x86_64";

test("one line without single quotes, as every login shell takes it", () => {
  expect(bootstrapScript(payload)).not.toMatch(/['\n]/);
});

test("takes the program once, runs it each time, and replaces one that differs", async () => {
  const home = join(folder, "a b");
  mkdirSync(home);
  const copied = [ON, "need", "run", "part runs"];
  expect((await bootstrap(home, PROGRAM)).said).toEqual(copied);
  expect((await bootstrap(home, "")).said).toEqual([ON, "have", "run", "part runs"]);
  const copy = join(home, ".cache/ssihv", payload.hash, "ssihv");
  writeFileSync(copy, `${PROGRAM}exit 1\n`);
  expect((await bootstrap(home, PROGRAM)).said).toEqual(copied);
  expect(await Bun.file(copy).text()).toBe(PROGRAM);
  expect(readdirSync(join(home, ".cache/ssihv"), { recursive: true }).sort()).toEqual([
    payload.hash,
    `${payload.hash}/ssihv`,
  ]);
});

test("a copy that ends early or is another is removed and not run", async () => {
  for (const input of [PROGRAM.slice(0, -1), PROGRAM.toUpperCase()]) {
    const home = mkdtempSync(join(folder, "home-"));
    expect((await bootstrap(home, input)).said).toEqual([ON, "need", "damaged"]);
    expect(readdirSync(join(home, ".cache/ssihv"))).toEqual([]);
  }
});

/** Mounts that only the script sees. */
function mounts(...folders: readonly (readonly [path: string, options: string])[]): string {
  return folders.map(([path, how]) => `mount -t tmpfs -o ${how} none ${path}`).join(" && ");
}

const isRoot = process.getuid?.() === 0;

test.skipIf(!isRoot)("from where nothing may be run it goes elsewhere, or says so", async () => {
  const home = mkdtempSync(join(folder, "home-"));
  const other = await bootstrap(home, PROGRAM, mounts([home, "noexec"], ["/var/tmp", "mode=1777"]));
  expect(other.said).toEqual([ON, "need", "run", "part runs"]);
  expect(existsSync(`/var/tmp/ssihv-0/${payload.hash}`)).toBe(false);
  const nowhere = await bootstrap(home, "", mounts([home, "noexec"], ["/var/tmp", "ro"]));
  const why = `nowhere  ${home}/.cache/ssihv (noexec) /var/tmp/ssihv-0 (not writable)`;
  expect(nowhere.said).toEqual([ON, why]);
  expect(() => heard(`${MARK} ${why}`)).toThrow(`${home}/.cache/ssihv (noexec)`);
});

test("another processor, and words that mean nothing", () => {
  expect(() => heard(`${MARK} on Linux aarch64`)).toThrow("it is Linux aarch64");
  expect(() => heard(`${MARK} damaged`)).toThrow("did not arrive whole");
  expect(heard(`${MARK} on Linux x86_64`)).toBeUndefined();
  expect(heard(`${MARK} tomorrow`)).toBeUndefined();
});
