import { expect, test } from "bun:test";

import { splitWords, sshReach } from "./reach.ts";

test("a command of several words, some of them quoted", () => {
  expect(splitWords(`ssh -F 'my config' -o "User=x y" -v`, "--ssh")).toEqual([
    "ssh",
    "-F",
    "my config",
    "-o",
    "User=x y",
    "-v",
  ]);
  for (const text of ["", "  ", "ssh 'open"]) {
    expect(() => splitWords(text, "--ssh")).toThrow("is not a command");
  }
});

test("the user's options are before ours, and the script is one word", () => {
  const reach = sshReach({ name: "r@b:22", host: "b", user: "r", port: 22 }, ["ssh", "-F", "x"]);
  const command = reach.command("echo on");
  expect(command.slice(0, 3)).toEqual(["ssh", "-F", "x"]);
  expect(command.slice(-4)).toEqual(["-p", "22", "r@b", "exec /bin/sh -c 'echo on'"]);
  expect(command).toContain("BatchMode=yes");
  expect(reach.trial).toBe("ssh -F x -o BatchMode=yes -p 22 r@b true");
});
