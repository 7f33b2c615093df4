// The dashboard's page: asks, remembers, draws. What is shown is the newest that is known; when
// nobody answers it stays, marked as stale, with the time.

import { clock } from "../format.ts";
import { History } from "../history.ts";
import { byId, setAttribute, setText } from "./dom.ts";
import { Feed, type Snapshot } from "./feed.ts";
import { EventLog, hostsTable, Summary, vmsTable } from "./overview.ts";
import { VmSection } from "./vm-section.ts";

const history = new History();
const summary = new Summary();
const hosts = hostsTable();
const vms = vmsTable();
const vmSection = new VmSection();
const events = new EventLog();
byId("hosts").append(hosts.root);
byId("vms").append(vms.root);

let current: string | undefined;
let newest: Snapshot | undefined;
let liveAt: Date | undefined;

/** What the address names; else what was looked at, also when it ends; else the first that runs. */
function lookedAt(): string | undefined {
  const named = new URLSearchParams(location.hash.slice(1)).get("vm");
  const known = newest?.vms ?? [];
  const found =
    known.find(({ name }) => name === named) ??
    known.find(({ name }) => name === current) ??
    known.find(({ state }) => state === "running") ??
    known[0];
  current = found?.name;
  return current;
}

function remember({ vms: list, numbers }: Snapshot): void {
  history.keep(new Set(list.map(({ name }) => name)));
  for (const { name, at, nodes } of numbers) {
    const of = history.of(name, list.find((vm) => vm.name === name)?.since ?? null);
    for (const { node, stats } of nodes) if (stats !== null) of.node(node).add(at, stats);
  }
}

function draw(snapshot: Snapshot): void {
  const now = Date.now();
  const { status, hosts: hostList, vms: vmList, numbers, heat } = snapshot;
  const looked = lookedAt();
  summary.update(status, now);
  hosts.update(hostList.map((host) => ({ host, vms: vmList, now })));
  vms.update(
    vmList.map((vm) => ({
      vm,
      numbers: numbers.find(({ name }) => name === vm.name),
      history: history.of(vm.name, vm.since),
      isCurrent: vm.name === looked,
      now,
    })),
  );
  const vm = vmList.find(({ name }) => name === looked);
  vmSection.update(
    vm,
    numbers.find(({ name }) => name === looked),
    vm === undefined ? undefined : history.of(vm.name, vm.since),
    heat?.vm === looked ? heat : undefined,
  );
}

function tell(state: "live" | "stale", text: string): void {
  const link = byId("link");
  setAttribute(link, "data-state", state);
  setText(link, text);
  setAttribute(document.body, "data-stale", state === "stale" ? "" : undefined);
}

const feed = new Feed({
  wanted: () => {
    const name = lookedAt();
    const runs = newest?.numbers.some((vm) => vm.name === name);
    return runs === true ? name : undefined;
  },
  onSnapshot: (snapshot) => {
    newest = snapshot;
    liveAt = new Date();
    remember(snapshot);
    draw(snapshot);
    tell("live", "live");
  },
  onEvent: (event) => events.add(event),
  onFailure: (words) => {
    const since = liveAt === undefined ? "" : ` since ${clock(liveAt)}`;
    tell("stale", `stale${since}: ${words}; trying again`);
  },
});

function followVisibility(): void {
  if (document.visibilityState === "visible") feed.start();
  else feed.stop();
}

document.addEventListener("visibilitychange", followVisibility);
addEventListener("hashchange", () => {
  if (newest !== undefined) draw(newest);
});
followVisibility();
