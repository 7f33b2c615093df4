// The commands of docs/TUTORIAL.md, in its order, on a cluster of processes: each ends as the
// tutorial says. What takes a second machine, a Debian or a person is left out: setting up (which
// every test of clusters does), the guest's own image and its console. The guest is a stand-in.

import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { Cluster, ECHO } from "./cluster-processes.ts";
import { checkout, hasKvm } from "./support.ts";
import { increment, say, writeGuest } from "./tiny-guest.ts";

/** In the second half of 2 GiB: where the tutorial looks at a page. */
const PAGE = 0x6000_0000;
const LEFT_OUT = /^ssihv (check|certs|coordinator|node|cluster token|vm console)\b/;
/** In the tutorial its host is away by then; here it runs still. Either way: not again. */
const REFUSED = "ssihv vm start demo";

interface Step {
  readonly command: string;
  /** What is shown below it, up to the next paragraph. */
  readonly shown: string;
}

function steps(text: string): Step[] {
  const found = text.matchAll(/^ {4}(ssihv .*)\n((?:\n?(?: {4}(?!ssihv ).*\n))*)/gm);
  return [...found]
    .map(([, command = "", shown = ""]) => ({ command: command.replace(/ +#.*/, ""), shown }))
    .filter(({ command }) => !LEFT_OUT.test(command));
}

describe.skipIf(!hasKvm())("the tutorial (needs /dev/kvm)", () => {
  test("its commands do what it says", async () => {
    const text = readFileSync(`${checkout}/docs/TUTORIAL.md`, "utf8");
    await using cluster = await Cluster.start("host-a", "host-b");
    const guest = join(cluster.folder, "vmlinuz");
    writeGuest(guest, increment(PAGE), say("login: "), ECHO);
    const [, yaml = ""] = /cat >demo\.yaml <<END\n((?: {4}.*\n)*?) {4}END$/m.exec(text) ?? [];
    const file = join(cluster.folder, "demo.yaml");
    writeFileSync(file, yaml.replaceAll(/^ {4}/gm, "").replaceAll(/\/srv\/vm\/\S+/g, guest));

    const done: string[] = [];
    for (const { command, shown } of steps(text)) {
      const words = command.replace("demo.yaml", file).split(" ").slice(1);
      const { code, out, err } = await cluster.ssihv(...words);
      expect([command, code, err]).toEqual([command, command === REFUSED ? 2 : 0, err]);
      done.push(command);
      // The heads of the tables that it shows are those that are printed.
      for (const [head] of shown.matchAll(/^ {4}[A-Z]{3,} {2}.*$/gm)) {
        const names = head
          .trim()
          .replace(/ *\.\.\.$/, "")
          .split(/ {2,}/);
        expect([command, names.filter((name) => !out.includes(name))]).toEqual([command, []]);
      }
    }
    expect(done.length).toBeGreaterThan(8);
    expect(done).toContain("ssihv vm pages --vm demo --gpa 0x60000000");
    expect(done.at(-1)).toBe("ssihv cluster remove host-b");
  });
});
