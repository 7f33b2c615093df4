import { expect, test } from "bun:test";
import { Value } from "@sinclair/typebox/value";

import { SsihvError } from "../base/errors.ts";
import { VmSpec } from "../control/vm-spec.ts";
import { parseDeclaredVms } from "./declared-vms.ts";

const WEB = `  - name: web
    nodes:
      - { cpus: 2, memory: 1G, host: host-a }
      - { cpus: 1, memory: 512M }
    kernel: /srv/vmlinuz
    hold_max: 2ms
`;
const OWN = `nodes:
  - { name: n0, cpus: 1, memory: 128M }
vm: { kernel: /srv/own, cmdline: quiet }
`;

const ABSOLUTE = "expected an absolute path on the host that leads the VM";

function refusal(text: string): string[] {
  try {
    parseDeclaredVms(text, "c.yaml");
  } catch (error) {
    if (!(error instanceof SsihvError)) throw error;
    expect(error.code).toBe("config_invalid");
    return error.message.split("\n");
  }
  throw new Error(`accepted:\n${text}`);
}

test("the list's VMs and the one of ssihv run, with where they stand", () => {
  const declared = parseDeclaredVms(`cluster: c\n${OWN}vms:\n${WEB}`, "c.yaml");
  expect(declared).toEqual([
    {
      spec: {
        name: "c",
        nodes: [{ cpus: 1, memoryBytes: 128 << 20 }],
        kernel: "/srv/own",
        cmdline: "quiet",
      },
      at: "c.yaml:3:3",
      hosts: [],
    },
    {
      spec: {
        name: "web",
        nodes: [
          { cpus: 2, memoryBytes: 2 ** 30, host: "host-a" },
          { cpus: 1, memoryBytes: 2 ** 29 },
        ],
        kernel: "/srv/vmlinuz",
        holdUsMax: 2000,
      },
      at: "c.yaml:6:5",
      hosts: [{ host: "host-a", at: "c.yaml:8:38" }],
    },
  ]);
  for (const { spec } of declared) expect(Value.Check(VmSpec, spec)).toBe(true);
});

test("mistakes are told where they stand", () => {
  expect(refusal(`cluster: c\nvms:\n${WEB.replace("hold_max: 2ms", "hold_mx: 2ms")}`)).toEqual([
    "c.yaml:8:5: unknown key vms[0].hold_mx; did you mean hold_max?",
  ]);
  expect(refusal(`cluster: c\nvms:\n${WEB.replace("hold_max: 2ms", "hold_max: 2")}`)[0]).toMatch(
    /^c\.yaml:8:15: vms\[0\]\.hold_max: expected a duration/,
  );
  expect(refusal(`cluster: c\nvms:\n${WEB.replace("/srv", "srv")}`)).toEqual([
    `c.yaml:7:13: vms[0].kernel: ${ABSOLUTE}, found "srv/vmlinuz"`,
  ]);
  expect(refusal("cluster: c\nvms: [7]\n")).toEqual([
    "c.yaml:2:7: vms[0]: expected a mapping of a VM's settings, found 7",
  ]);
  expect(refusal(`cluster: c\nvms:\n${WEB}${WEB}`)).toEqual([
    "c.yaml:9:11: vms[1].name: web is declared at c.yaml:3:5, too",
  ]);
  expect(refusal("cluster: c\n")[0]).toContain("c.yaml:1:1: no VM is declared");
  expect(refusal(`cluster: c\nvm: { kernel: /k }\nvms:\n${WEB}`)).toEqual([
    "c.yaml:2:5: vm without nodes: nodes is missing",
  ]);
});

test("what only ssihv run has is refused", () => {
  const nodes = 'nodes:\n  - { name: a, cpus: 1, memory: 64M, address: "h:1" }\n';
  const text = `cluster: c\n${nodes}vm: { kernel: k, balloon: 1G }\n`;
  expect(refusal(text)).toEqual([
    "c.yaml:3:47: nodes[0].address: in a cluster the coordinator gives addresses: leave it out",
    `c.yaml:4:15: vm.kernel: ${ABSOLUTE}, found "k"`,
    "c.yaml:4:27: vm.balloon: only ssihv run gives a VM one: leave it out",
  ]);
  expect(refusal(`cluster: c\n${nodes.replace(', address: "h:1"', "")}`)).toEqual([
    `c.yaml:1:1: vm.kernel is missing: ${ABSOLUTE}`,
  ]);
});
