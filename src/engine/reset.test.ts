import { expect, test } from "bun:test";
import { CONTROL, type Hands, ResetBarrier } from "./reset.ts";

/** Barriers of several nodes joined by queues; `log` is what happened in which order. */
function cluster(nodes: number, paged: boolean) {
  const log: string[] = [];
  const dead = new Set<number>();
  const queue: (() => void)[] = [];
  const barriers: ResetBarrier[] = [];
  for (let node = 0; node < nodes; node++) {
    const later = (what: () => void) => queue.push(what);
    const laterSaid = (word: string, what: () => void) =>
      later(() => {
        log.push(`${node} ${word}`);
        what();
      });
    const own = () => barriers[node] as ResetBarrier;
    const hands: Hands = {
      pause: () => laterSaid("parked", () => own().parked()),
      settlePages: () => laterSaid("settled", () => own().settled()),
      forgetPages: () => laterSaid("forgot", () => own().pagesForgotten()),
      resetMachine: () => log.push(`${node} reset`),
      load: () => log.push(`${node} load`),
      resume: () => log.push(`${node} resume`),
      send: (to, operation) => {
        const targets = to === "others" ? barriers.filter((_, i) => i !== node) : [barriers[to]];
        for (const target of targets) {
          later(() => {
            if (!dead.has(node) && target && !dead.has(barriers.indexOf(target))) {
              target.control(node, operation);
            }
          });
        }
      },
    };
    barriers.push(new ResetBarrier({ node, nodes, paged }, hands));
  }
  const run = () => {
    for (let next = queue.shift(); next; next = queue.shift()) next();
  };
  /** From now on nothing comes from the node, nor reaches it; the others hear of it later. */
  const kill = (node: number) => {
    dead.add(node);
    queue.push(() => {
      barriers.forEach((barrier, i) => {
        if (!dead.has(i)) barrier.lost(node);
      });
    });
  };
  return { log, queue, barriers, run, kill };
}

test("one node with plain memory: park, reset, load, resume", () => {
  const { log, barriers, run } = cluster(1, false);
  barriers[0]?.begin();
  run();
  expect(log).toEqual(["0 parked", "0 reset", "0 load", "0 resume"]);
  expect(barriers[0]?.active).toBe(false);
});

test("nobody forgets before all are parked, nobody resumes before all forgot", () => {
  const { log, barriers, run } = cluster(3, true);
  barriers[0]?.begin();
  run();
  const last = (what: string) => log.findLastIndex((line) => line.endsWith(what));
  const first = (what: string) => log.findIndex((line) => line.endsWith(what));
  expect(last("parked")).toBeLessThan(first("forgot"));
  expect(last("settled")).toBeLessThan(first("forgot"));
  expect(log.filter((line) => line.endsWith("settled")).length).toBe(3);
  expect(last("reset")).toBeLessThan(first("resume"));
  expect(log.filter((line) => line.endsWith("resume")).length).toBe(3);
  expect(log.indexOf("0 load")).toBeLessThan(first("resume"));
});

test("a second request during a reset changes nothing", () => {
  const { log, barriers, run } = cluster(2, true);
  barriers[0]?.begin();
  barriers[0]?.begin();
  run();
  expect(log.filter((line) => line === "0 parked").length).toBe(1);
  barriers[0]?.begin();
  run();
  expect(log.filter((line) => line === "1 resume").length).toBe(2);
});

test("a pause that is no reset is not taken for one", () => {
  const { barriers } = cluster(1, true);
  expect(barriers[0]?.parked()).toBe(false);
  barriers[0]?.settled();
  barriers[0]?.control(0, CONTROL.forgotten);
  expect(barriers[0]?.active).toBe(false);
});

test("a memory node that dies before or at any point of a reset is not waited for", () => {
  let points = 0;
  for (let at = 0, over = false; !over; at++) {
    const { log, queue, barriers, run, kill } = cluster(3, true);
    barriers[0]?.begin();
    for (let i = 0; i < at; i++) queue.shift()?.();
    over = queue.length === 0;
    kill(2);
    run();
    const of = (what: string) => log.filter((line) => line === what).length;
    expect([at, barriers[0]?.active, of("0 resume"), of("1 resume")]).toEqual([at, false, 1, 1]);
    const forgot = log.findIndex((line) => line.endsWith("forgot"));
    expect(log.lastIndexOf("1 settled")).toBeLessThan(forgot);
    // And the next one does without it from the start.
    barriers[0]?.begin();
    run();
    expect([barriers[0]?.active, of("0 resume"), of("1 resume")]).toEqual([false, 2, 2]);
    points = at;
  }
  expect(points).toBeGreaterThan(10);
});
