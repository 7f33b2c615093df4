import { expect, test } from "bun:test";

import { wordsOf } from "./install.ts";
import { mainHere } from "./main-here.fixture.ts";

test("a daemon's flags are checked as it would check them", async () => {
  const small = await mainHere("install", "node", "--print", "--memory", "3");
  expect([small.status, small.err]).toEqual([2, expect.stringContaining("--memory: 3 is 3 bytes")]);
  const unknown = await mainHere("install", "coordinator", "--print", "--memory", "3G");
  expect([unknown.status, unknown.err]).toEqual([2, expect.stringContaining("--memory")]);
});

test("--print shows unit and options, paths absolute, defaults left to the daemon", async () => {
  const { status, out } = await mainHere(
    ...["install", "node", "--print", "--memory", "64G", "--state", "state", "--memory-only"],
    ...["--root", "/nowhere"],
  );
  expect(status).toBe(0);
  expect(out).not.toContain("--sandbox");
  expect(out).toContain("# /nowhere/etc/systemd/system/ssihv-node.service\n");
  expect(out).toContain(
    `SSIHV_OPTIONS="--state ${process.cwd()}/state --memory 64G --memory-only"\n`,
  );
  const plain = await mainHere("install", "coordinator", "--print", "--root", "/nowhere");
  expect(plain.out).toContain('SSIHV_OPTIONS=""\n');
  const sandbox = ["--root", "/nowhere", "--sandbox", "required"];
  const node = await mainHere("install", "node", "--print", ...sandbox);
  expect(node.out).toContain('SSIHV_OPTIONS="--sandbox required"\n');
});

test("a token and the flags of the installation are no options of the service", () => {
  const given = { join: "ssihv-join-1.x", name: "a", root: "/x", print: false, start: true };
  expect(wordsOf({ ...given, vmPorts: "20000", acceptUnfit: true, memoryOnly: false })).toEqual([
    ...["--vm-ports", "20000", "--accept-unfit"],
  ]);
});
