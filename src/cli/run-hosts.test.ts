// What `ssihv run --hosts` refuses before it reaches for any host; the rest is in
// test/e2e/hosts.test.ts.

import { expect, test } from "bun:test";

import { mainHere } from "./main-here.fixture.ts";

test.each([
  [["--hosts", "a,b", "--nodes", "3"], "--hosts names 2 host(s), but 3 node(s) are asked for"],
  [["--hosts", "a", "--memory-nodes", "1"], "--memory-hosts names 0 host(s), but 1 memory node(s)"],
  [["--hosts", "a", "--memory-hosts", "a"], "a is there twice"],
  [["--hosts", "a,b", "--key-file", "vm.key"], "--key-file with --hosts"],
  [["--hosts", "a,b", "--metrics", "127.0.0.1:99"], "--metrics with --hosts"],
  [["--hosts", "a,b", "--system-map", "x"], "--system-map with --hosts"],
  [["--memory-hosts", "a"], "--memory-hosts without --hosts"],
  [["--ssh", "ssh -v"], "--ssh without --hosts"],
  [["--accept-unfit"], "--accept-unfit without --hosts"],
  [["--hosts", "a,b", "--ssh", ""], "is not a command"],
])("run %p", async (flags, why) => {
  const { status, err } = await mainHere("run", "--kernel", "k", ...flags);
  expect(err).toContain(why);
  expect(status).toBe(2);
});
