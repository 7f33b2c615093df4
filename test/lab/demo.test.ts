// `make demo` as a user sees it. On a terminal: the shell of a guest in an emulated host answers
// what is typed here, and Ctrl-A X gives the terminal back (one node, for speed). On a host with
// fit KVM, which an emulated host is: the first rung, two engines and the check across them.

import { describe, expect, test } from "bun:test";
import { spanCheck } from "../guest/build.ts";
import { expectCooked, inShell } from "../pseudo-terminal.ts";
import { guestKernel } from "./guest-image.ts";
import { TROUBLE } from "./guest-run.ts";
import { startLab } from "./lab.ts";
import { checkout } from "./paths.ts";
import { labMissing } from "./tools.ts";

const reason = labMissing();
const demo = [process.execPath, `${checkout}/tools/demo.ts`];
// Another lab of this checkout may have to end first.
const waitMs = 300_000;
const limit = 900;

describe.skipIf(reason !== undefined)("the demo", () => {
  test(
    "on a terminal: the guest's shell in an emulated host is the user's, Ctrl-A X ends it",
    async () => {
      const began = performance.now();
      await using terminal = inShell([...demo, "--rung", "2", "--nodes", "1"]);
      await terminal.until("guest# ", waitMs / 1000 + 90);
      expect(terminal.text).toContain("demo: rung 2: one engine in an emulated host, because");
      // The answer only: neither the echo nor a terminal in the wrong mode can make it.
      terminal.type("echo six-times-seven-$((6*7))\r");
      await terminal.until("six-times-seven-42");
      // A control key is the guest's: it ends the guest's sleep, not the demo. The sleeper itself
      // says that it is there: before, Ctrl-C would be its shell's, which starts it all the same.
      terminal.type("sh -c 'echo sleeps; exec sleep 1000'\r");
      await terminal.until("\nsleeps");
      terminal.type("\x03");
      terminal.type("echo status-of-sleep=$?\r");
      await terminal.until("status-of-sleep=130");
      terminal.type("\x01h");
      await terminal.until("Ctrl-A X       stop the VM and quit");
      terminal.type("\x01x");
      await terminal.until("all-done");
      expect(terminal.text).toContain("VM vm: stopped");
      expect(terminal.text).toContain("demo: ok: one Linux over one node, checked");
      expect(terminal.text).toContain("status=0");
      expectCooked(terminal.text);
      console.log(`demo, rung 2, one node: ${((performance.now() - began) / 1000).toFixed(1)} s`);
    },
    waitMs + 120_000,
  );

  test(
    "on a host with fit KVM: rung 1, one Linux over two engines, and its shell",
    async () => {
      // Made here, because what is made in the host is lost with it.
      await Promise.all([spanCheck(), guestKernel("cloud")]);
      const lab = await startLab({ memoryMiB: 3072 });
      let failed = true;
      try {
        const host = lab.host(1);
        const words = `${demo.join(" ")} --run-flags='--clock-dilation 150 --peer-timeout 30s'`;
        // Without a terminal the guest powers off by itself.
        const alone = await host.run(`${words} --nodes 1 2>&1`, { limitSeconds: 120 });
        expect(alone.log).toContain("demo: rung 1: one engine on this host, because KVM with TDP");
        expect(alone.log).toContain("demo: ok: one Linux over one node, checked");
        expect(alone.exitCode).toBe(0);

        const keys = new TransformStream<Uint8Array, Uint8Array>();
        const writer = keys.writable.getWriter();
        let seen = "";
        const onOutput = (text: string) => {
          if (seen.includes("guest# ")) return;
          seen += text;
          if (seen.includes("guest# ")) void writer.write(Buffer.from("poweroff -f\r"));
        };
        const options = { terminal: true, input: keys.readable, onOutput, limitSeconds: limit };
        const result = await host.run(words, options);
        expect(result.log).toContain("demo: rung 1: two engines on this host, because KVM with");
        expect(result.log).toContain("node1: cpus 1, distances 20 10");
        expect(result.log).toContain("span-check: all ok");
        expect(result.log).toContain("the guest powered off");
        expect(result.log).toContain("demo: ok: one Linux over two nodes, checked");
        expect(result.log).not.toMatch(TROUBLE);
        expect(result.exitCode).toBe(0);
        const seconds = `${alone.seconds.toFixed(1)} s on one node, ${result.seconds.toFixed(1)} s`;
        console.log(`demo, rung 1, in an emulated host: ${seconds} on two`);
        failed = false;
      } finally {
        await lab.close({ keep: failed });
      }
    },
    waitMs + (limit + 180) * 1000,
  );
});
