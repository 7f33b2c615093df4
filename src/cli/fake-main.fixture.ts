// The real command line over engines that are fakes (src/node/fake-engine.fixture.ts): what tests
// of `ssihv run` spawn, so that they need neither KVM nor the Zig library. Never part of the
// product.

import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { records } from "../native/abi.gen.ts";
import type { HostProbe } from "../native/engine-handle.ts";
import { hostFacts } from "../node/host-facts.ts";
import type { CpuDump } from "../node/last-words.ts";
import { main } from "./app.ts";

// VMs of tests are nobody else's to see, nor may they meet others of their name.
if (process.env["SSIHV_RUNTIME_DIR"] === undefined) {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-fake-"));
  process.env["SSIHV_RUNTIME_DIR"] = folder;
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
}

/** Of a host on which all is good (abi.zig ProbeState). */
function goodProbe(): HostProbe {
  const good = { state: 1, errno: 0, value: 0n };
  return Object.fromEntries(
    Object.keys(records.HostProbe.fields).map((field) => [field, good]),
  ) as HostProbe;
}

const ENGINE = join(import.meta.dir, "..", "node", "fake-engine.fixture.ts");

const status = await main(process.argv.slice(2), process, {
  facts: hostFacts,
  kvmOpenError: () => process.env["FAKE_KVM_ERROR"],
  probe: () => Promise.resolve(goodProbe()),
  runEngine: () => Promise.reject(new Error("no engine in this test")),
  engineCommand: [process.execPath, ENGINE],
  sharedPages: () =>
    Promise.resolve(() => {
      const fd = openSync("/dev/null", "r+");
      return {
        fd,
        close: () => closeSync(fd),
        cpuDump: () => ({ valid: 0 }) as CpuDump,
        lastWords: () => {
          const text = new TextEncoder().encode("planted");
          return { kind: 1, signo: 0, vcpu: 0, text_len: text.length, address: 0n, text };
        },
      };
    }),
});
process.exit(status);
