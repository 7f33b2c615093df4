import { expect, test } from "bun:test";
import type { SsihvError } from "../base/errors.ts";
import { HostLink } from "./host-link.ts";

test("a way to a host that hangs is given up, and what it says meanwhile is told", async () => {
  const said: string[] = [];
  const lost = Promise.withResolvers<SsihvError>();
  const wait = "echo Job step creation is disabled >&2; echo a motd; exec sleep 60";
  const link = HostLink.there(
    "n1",
    { trial: "srun true", command: () => ["/bin/sh", "-c", wait] },
    { path: "/bin/true", hash: "0".repeat(64), bytes: 1 },
    {
      onMessage: () => undefined,
      onStderr: (line) => said.push(line),
      onCopying: () => undefined,
      onLost: lost.resolve,
    },
    400,
  );
  const error = await lost.promise;
  expect(said).toEqual(["Job step creation is disabled"]);
  expect(error).toMatchObject({
    code: "node_unreachable",
    message: "host n1: nothing was heard for 0.4 s; the last was: a motd",
    hint: expect.stringContaining("srun true"),
  });
  await expect(link.host).rejects.toBe(error);
  await link.close();
});
