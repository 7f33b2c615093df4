// `ssihv run --metrics` as its users meet it: Debian's Prometheus scrapes a running VM, and its
// promtool has nothing to say against the text.

import { afterAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { unpackedPackage } from "../lab/debian.ts";
import { key, powerOff, REMOTE, start } from "./running-vm.ts";
import { checkout, hasKvm, removeRuntimeFolder, run, temporaryFolder } from "./support.ts";
import { increment, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

const SHAPE = ["--memory", "256M", "--nodes", "2", "--cpus", "2"];
/** Prometheus has scraped by then, on a loaded machine too. */
const PATIENCE_MS = 60_000;

interface Panel {
  readonly targets: readonly { readonly expr: string }[];
}

interface Answer {
  readonly status: string;
  readonly error?: string;
  readonly data: {
    readonly result: readonly {
      readonly metric: Record<string, string>;
      readonly value: readonly [number, string];
    }[];
  };
}

/** A Prometheus that scrapes `target` each second, ended at the end of the block. */
async function prometheus(folder: string, target: string) {
  const root = await unpackedPackage("prometheus");
  const port = freePorts();
  const config = `${folder}/prometheus.yml`;
  writeFileSync(
    config,
    `scrape_configs:
- job_name: ssihv
  scrape_interval: 1s
  static_configs: [{targets: ["${target}"]}]
`,
  );
  const child = Bun.spawn(
    [
      `${root}/usr/bin/prometheus`,
      `--config.file=${config}`,
      `--storage.tsdb.path=${folder}/data`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { stdout: "ignore", stderr: Bun.file(`${folder}/prometheus.log`) },
  );
  const query = async (expression: string): Promise<Answer> => {
    const url = `http://127.0.0.1:${port}/api/v1/query?query=${encodeURIComponent(expression)}`;
    return (await (await fetch(url)).json()) as Answer;
  };
  return {
    query,
    /** The answer once there is one. */
    first: async (expression: string): Promise<Answer["data"]["result"]> => {
      for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await Bun.sleep(200)) {
        const answer = await query(expression).catch(() => undefined);
        const result = answer?.data?.result ?? [];
        if (result.length > 0) return result;
      }
      const log = await Bun.file(`${folder}/prometheus.log`).text();
      throw new Error(`nothing for ${expression}:\n${log}`);
    },
    [Symbol.asyncDispose]: async () => {
      child.kill();
      await child.exited;
    },
  };
}

describe.skipIf(!hasKvm())("metrics of a running VM (needs /dev/kvm)", () => {
  test("Debian's Prometheus scrapes both nodes, and promtool finds no fault", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, increment(REMOTE), say("1"), key, powerOff);
    const target = `127.0.0.1:${freePorts()}`;
    await using running = start(kernel, ...SHAPE, "--metrics", target);
    await running.out.until("1");

    const text = await (await fetch(`http://${target}/metrics`)).text();
    const root = await unpackedPackage("prometheus");
    const lint = Bun.spawn([`${root}/usr/bin/promtool`, "check", "metrics"], {
      stdin: new TextEncoder().encode(text),
      stdout: "pipe",
      stderr: "pipe",
    });
    const words = (await lint.stdout.text()) + (await lint.stderr.text());
    expect([words, await lint.exited]).toEqual(["", 0]);

    await using server = await prometheus(folder.path, target);
    const up = await server.first('ssihv_node_up{vm="tiny"} == 1');
    expect(up.map(({ metric }) => metric["node"]).sort()).toEqual(["0", "1"]);
    const faults = await server.first(
      'ssihv_faults_answered_total{vm="tiny",node="0",from="elsewhere"}',
    );
    expect(Number(faults[0]?.value[1])).toBeGreaterThanOrEqual(1);
    const median = "histogram_quantile(0.5, ssihv_remote_fault_duration_seconds_bucket)";
    const seconds = Number((await server.first(`${median} > 0`))[0]?.value[1]);
    expect(seconds).toBeLessThan(17);
    const exits = await server.first('sum(ssihv_vcpu_exits_total{vm="tiny"})');
    expect(Number(exits[0]?.value[1])).toBeGreaterThanOrEqual(1);

    // What the dashboard asks, with what Grafana puts in.
    const { panels } = await Bun.file(`${checkout}/grafana/ssihv.json`).json();
    for (const { expr } of panels.flatMap((panel: Panel) => panel.targets)) {
      const asked = expr.replaceAll("$__rate_interval", "1m").replaceAll("$vm", ".*");
      const { status, error } = await server.query(asked);
      expect([asked, status, error]).toEqual([asked, "success", undefined]);
    }

    running.type("x");
    expect(await running.child.exited).toBe(0);
    // The endpoint goes with the VM.
    await expect(fetch(`http://${target}/metrics`)).rejects.toThrow();
  }, 180_000);

  test("promtool takes the alert rules of docs/alerts.yml", async () => {
    const root = await unpackedPackage("prometheus");
    const rules = `${checkout}/docs/alerts.yml`;
    const { code, out, err } = await run([`${root}/usr/bin/promtool`, "check", "rules", rules]);
    const count = (await Bun.file(rules).text()).match(/- alert: /g)?.length ?? 0;
    expect([code, out, err]).toEqual([0, expect.stringContaining(`${count} rules found`), ""]);
  }, 180_000);

  test("an address in use is refused before anything starts", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, say("never"), powerOff);
    const data = () => undefined;
    using taken = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data } });
    const target = `127.0.0.1:${taken.port}`;
    await using running = start(kernel, "--metrics", target);
    await running.err.end();
    expect(running.err.text).toContain(`--metrics ${target} cannot be used`);
    expect(await running.child.exited).toBe(2);
    await running.out.end();
    expect(running.out.text).toBe("");
  });
});
