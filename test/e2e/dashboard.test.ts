// The dashboard in a real browser, in front of a coordinator and agents as processes with payload
// guests: what the page shows is what the API says, it follows what happens by itself, it loads
// nothing from anywhere else, and nothing that a host or a VM says becomes markup. Pictures of it
// are left in lab.out/dashboard.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";

import type { Host, Status, Token, Vm } from "../../coordinator/api-schemas.ts";
import { bytes, whole } from "../../coordinator/dashboard/format.ts";
import { FakeAgent } from "../../coordinator/fake-agent.fixture.ts";
import type { VmNumbers } from "../../coordinator/number-schemas.ts";
import type { HeatAnswer } from "../../src/control/vm-answers.ts";
import { Browser, hasBrowser, type Page } from "./browser.ts";
import { Cluster, until } from "./cluster-processes.ts";
import { binary, checkout, hasKvm, removeRuntimeFolder } from "./support.ts";
import { eachPage, increment, quarrel, say } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

/** A name nobody can have, in whatever may be any text. */
const HOSTILE =
  `<img src="//x.invalid/" onerror="document.title='owned'">` + "<script>alert(1)</script>";
const MIB = 1 << 20;
const NODES = `nodes:\n${"  - { cpus: 1, memory: 128M }\n".repeat(2)}`;
const SIZES = { desk: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } } as const;

/** `ssihv dashboard`, and the link that it printed. */
async function dashboard(cluster: Cluster) {
  const child = Bun.spawn([binary, "dashboard"], {
    env: { ...process.env, SSIHV_RUNTIME_DIR: join(cluster.folder, "run") },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk);
    if (text.includes("\n")) break;
  }
  const link = text.trim();
  return {
    link,
    origin: new URL(link).origin,
    child,
    [Symbol.asyncDispose]: async () => {
      child.kill();
      await child.exited;
    },
  };
}

/** A host whose every word is hostile, and a VM of its that failed with such words. */
async function hostileHost(cluster: Cluster): Promise<FakeAgent> {
  const { token } = await cluster.call<Token>("POST", "/v1/tokens", { seconds: 60 });
  const agent = await FakeAgent.join(token, "rogue");
  agent.build = HOSTILE;
  agent.laneHost = HOSTILE;
  agent.problems = [HOSTILE];
  await agent.connect();
  const beat = setInterval(() => agent.tell({ type: "alive" }), 500);
  beat.unref();
  const nodes = [{ cpus: 1, memoryBytes: 64 * MIB, host: "rogue" }];
  await cluster.call("POST", "/v1/vms", { name: "trap", nodes, kernel: `/${HOSTILE}` });
  await cluster.call("POST", "/v1/vms/trap/start");
  agent.lead("ended", { kind: "failed", reason: "engine_dead", text: HOSTILE });
  await cluster.vmIs("trap", "failed");
  return agent;
}

const live = `document.querySelector("#link").dataset.state === "live"`;
const row = (table: string, name: string) =>
  `[...document.querySelectorAll("#${table} tbody tr")]
    .find((row) => row.cells[0].textContent === "${name}")`;
const cell = (table: string, name: string, i: number) =>
  `${row(table, name)}?.cells[${i}].textContent`;

async function hostsAreThoseOf(page: Page, cluster: Cluster): Promise<void> {
  const hosts = await cluster.call<Host[]>("GET", "/v1/hosts");
  const shown = await page.rows("hosts");
  const part = (cells: readonly string[]) => [0, 1, 3, 4, 8, 9].map((i) => cells[i] ?? "");
  expect(shown.map(part)).toEqual(
    hosts.map(({ name, state, used, capacity, laneHost, why, check }) => [
      ...[name, state, `${used.cpus} of ${capacity?.cpus}`],
      `${bytes(used.memoryBytes)} of ${bytes(capacity?.memoryBytes ?? 0)}`,
      ...[laneHost ?? "-", why ?? check?.problems.join("; ") ?? ""],
    ]),
  );
}

/** Of a guest that is quiet: its counters stand still. */
async function numbersAreThoseOf(page: Page, cluster: Cluster, name: string): Promise<void> {
  const all = await cluster.call<VmNumbers[]>("GET", "/v1/numbers");
  const nodes = all.find((vm) => vm.name === name)?.nodes ?? [];
  const counted = nodes.map(({ stats }) => stats?.engine["faults_remote"] ?? 0);
  expect(counted[0]).toBeGreaterThan(0);
  const shown = await page.rows("vm-body .scroll[aria-label='Nodes of the VM']");
  expect(shown.map((cells) => cells.at(-1))).toEqual(counted.map(whole));

  // The blocks are the same faults once more.
  const heat = await cluster.call<HeatAnswer>("GET", `/v1/vms/${name}/heat`);
  const sums = heat.nodes.map((node) => (node.heat?.faults ?? []).reduce((a, b) => a + b, 0));
  expect(sums).toEqual(counted);
  await page.evaluate(`document.querySelectorAll("input[name=window]")[2].click()`);
  const total = counted.reduce((a, b) => a + b, 0);
  await page.until(
    `document.querySelector("#latency .note").textContent.startsWith("${whole(total)} remote")`,
  );
  await page.until(`document.querySelectorAll("#hot tbody tr").length === 1`);
  const hot = await page.rows("hot");
  // What node 0 wrote at 192 MiB.
  expect(hot[0]).toEqual(["0xc000000", "1", whole(total), `0: ${whole(total)}`]);
}

async function pictures(page: Page): Promise<void> {
  const folder = `${checkout}/lab.out/dashboard`;
  mkdirSync(folder, { recursive: true });
  for (const [name, size] of Object.entries(SIZES)) {
    for (const scheme of ["light", "dark"] as const) {
      await page.look(size, scheme);
      await page.evaluate(`scrollTo(0, 0)`);
      await Bun.sleep(300);
      await page.picture(`${folder}/${name}-${scheme}.png`);
      // A table that is wider moves in its own box: the page itself fits.
      const wide = await page.evaluate(`document.documentElement.scrollWidth`);
      expect([name, wide]).toEqual([name, size.width]);
    }
  }
  await page.look(SIZES.desk, "light");
}

describe.skipIf(!hasKvm() || !hasBrowser)(
  "the dashboard in Chromium (needs /dev/kvm and chromium-headless-shell)",
  () => {
    test("shows what the API says, live, and nothing from elsewhere", async () => {
      await using cluster = await Cluster.start("host-a", "host-b");
      const rogue = await hostileHost(cluster);
      const quiet = cluster.file("quiet", NODES, increment(192 * MIB), say("hello"));
      await cluster.ok("vm", "create", "-f", quiet, "--start");
      await cluster.vmIs("quiet", "running");
      await using proxy = await dashboard(cluster);
      await using browser = await Browser.start();
      const page = await browser.page();
      await page.look(SIZES.desk, "light");
      await page.goto(proxy.link);
      await page.until(live);
      await page.until(`${cell("vms", "quiet", 1)} === "running"`);
      expect(await page.evaluate(`location.href`)).toBe(`${proxy.origin}/`);

      // What is shown is what is so; hostile words are words.
      await hostsAreThoseOf(page, cluster);
      await page.until(`document.querySelector("#vm-head").textContent === "VM quiet: running"`);
      await page.until(`document.querySelectorAll("#vm-body tbody tr").length > 1`);
      await numbersAreThoseOf(page, cluster, "quiet");
      expect(await page.evaluate(cell("hosts", "rogue", 9))).toBe(HOSTILE);
      expect(await page.evaluate(cell("vms", "trap", 12))).toBe(HOSTILE);
      await page.until(
        `[...document.querySelectorAll("#events td")]
          .some((td) => td.textContent === ${JSON.stringify(HOSTILE)})`,
      );
      expect(await page.evaluate(`[document.images.length, document.scripts.length]`)).toEqual([
        0, 1,
      ]);
      expect(await page.evaluate(`document.title`)).toBe("SSI-HV");

      // Another VM comes and is busy, the first one ends: the page follows.
      const walk = eachPage(160 * MIB, 3000, [0xfe, 0x00]);
      const more = eachPage(200 * MIB, 700, [0xfe, 0x00]);
      const busy = cluster.file("busy", NODES, walk, more, say("go"), quarrel());
      await cluster.ok("vm", "create", "-f", busy, "--start");
      await page.until(`${cell("vms", "busy", 1)} === "running"`);
      await page.evaluate(`location.hash = "vm=busy"`);
      await page.until(`document.querySelector("#vm-head").textContent === "VM busy: running"`);
      await page.until(`parseFloat(${cell("vms", "busy", 8)}) > 0`);
      await page.until(`document.querySelectorAll("#hot tbody tr").length >= 8`);
      // Keys move over the heat map, and it tells the block in words.
      await page.evaluate(`document.querySelector("#heat canvas").focus()`);
      await page.press("ArrowRight");
      expect(await page.evaluate(`document.querySelector("#heat .note").textContent`)).toMatch(
        /^0x0, 2.MiB, home node 0: node 0 [\d.]+/,
      );
      await pictures(page);
      await cluster.ok("vm", "stop", "quiet");
      await cluster.vmIs("quiet", "stopped");
      await page.until(`${cell("vms", "quiet", 1)} === "stopped"`);
      const { vms } = await cluster.call<Status>("GET", "/v1/status");
      expect(vms).toEqual({ failed: 1, stopped: 1, running: 1 });
      expect(await page.evaluate(`document.querySelector("#summary").textContent`)).toContain(
        "VMs1 of 3 running",
      );
      // How it was before its end can still be seen, and why it ended.
      await page.evaluate(`location.hash = "vm=quiet"`);
      await page.until(`document.querySelector("#vm-head").textContent === "VM quiet: stopped"`);
      expect(await page.evaluate(`document.querySelector("#latency .note").textContent`)).toMatch(
        /^1 remote faults: median/,
      );
      const { last } = await cluster.call<Vm>("GET", "/v1/vms/quiet");
      expect(await page.evaluate(`document.querySelector("#vm-body .note").textContent`)).toBe(
        `requested: ${last?.text}`,
      );
      expect(page.complaints).toEqual([]);

      // Hidden, it asks nothing.
      await page.show(false);
      await Bun.sleep(500);
      const asked = page.requests.length;
      await Bun.sleep(2500);
      expect(page.requests.length).toBe(asked);
      await page.show(true);
      await page.until(`${cell("vms", "busy", 1)} === "running"`);

      // Without the coordinator the page says so, and since when; with it it goes on.
      await cluster.coordinator.kill();
      await page.until(
        `/^stale since \\d\\d:\\d\\d:\\d\\d: the coordinator at .* does not answer; trying again$/
          .test(document.querySelector("#link").textContent)`,
      );
      expect(await page.evaluate(cell("vms", "busy", 1))).toBe("running");
      await cluster.startCoordinator();
      await rogue.again().connect();
      await page.until(live);
      await page.until(`${cell("hosts", "host-b", 1)} === "up"`);
      await page.until(`${cell("vms", "busy", 1)} === "running"`);
      const text = `document.querySelector("#events").textContent`;
      await page.until(`(${text}.match(/host_uphost-b/g) ?? []).length === 2`);
      await cluster.ok("vm", "destroy", "busy", "--force");
      await page.until(`${row("vms", "busy")} === undefined`);

      // The only complaints: no answer for a while, and none about a VM that had just gone.
      const expected = /status of 502|status of 404 .*\/v1\/vms\/busy\/heat$/;
      const other = page.complaints.filter((words) => !expected.test(words));
      expect(other).toEqual([]);
      const origins = new Set(page.requests.map((url) => new URL(url).origin));
      expect([...origins]).toEqual([proxy.origin]);
      const vm = await cluster.call<Vm>("GET", "/v1/vms/trap");
      expect(vm.last?.text).toBe(HOSTILE);
    });

    test("a page without its key shows nothing", async () => {
      await using cluster = await Cluster.start();
      await using proxy = await dashboard(cluster);
      await using browser = await Browser.start();
      const page = await browser.page();
      await page.goto(`${proxy.origin}/`);
      await page.until(`document.body.textContent.startsWith("Open the link")`);
      // Used by one, void for the next.
      await page.goto(proxy.link);
      await page.until(live);
      const again = await fetch(proxy.link);
      expect([again.status, await again.text()]).toEqual([
        401,
        expect.stringContaining("This link was used"),
      ]);
      proxy.child.kill();
      await page.until(
        `document.querySelector("#link").textContent.includes("nobody answers at this address")`,
      );
      await until("it has ended", async () => (await proxy.child.exited) === 0);
    });
  },
);
