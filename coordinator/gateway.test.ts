// That HTTP servers of the coordinator let streams be quiet: a console of an idle guest is.

import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { serveUnix } from "./gateway.ts";

/** Beyond the 10 s after which Bun cuts what is idle, unless told otherwise. */
const QUIET_MS = 13_000;

test(
  "a stream that has said something may be quiet for long",
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "ssihv-gateway-"));
    const unix = join(folder, "api");
    const bytes = (text: string) => new TextEncoder().encode(text);
    const server = serveUnix(
      unix,
      async () =>
        new Response(
          new ReadableStream({
            start: async (controller) => {
              controller.enqueue(bytes("first "));
              // The answer's later writes count as signs of life of their own.
              await Bun.sleep(100);
              controller.enqueue(bytes("second "));
              await Bun.sleep(QUIET_MS);
              controller.enqueue(bytes("third"));
              controller.close();
            },
          }),
        ),
    );
    try {
      const response = await fetch("http://coordinator/", { unix, timeout: false });
      expect(await response.text()).toBe("first second third");
    } finally {
      await server.stop(true);
      rmSync(folder, { recursive: true });
    }
  },
  2 * QUIET_MS,
);
