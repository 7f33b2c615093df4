// The VMs that a cluster-config.yaml declares for `ssihv cluster apply`: those of its list `vms`,
// each as in the file of `ssihv vm create`, and the one that its `nodes` and `vm` describe for
// `ssihv run`, under the cluster's name. Each knows where in the file it stands.

import type { Static } from "@sinclair/typebox";

import { CLUSTER_WORDS, ClusterConfigSchema } from "./cluster-config.ts";
import { PATH_EXPECTED, readVm, type VmConfigRead } from "./vm-config.ts";
import { type Reader, readYaml, show, yamlText } from "./yaml-schema.ts";

export interface DeclaredVm {
  readonly spec: VmConfigRead;
  /** "file:line:col". */
  readonly at: string;
  /** Of the value at "host" of each node that names one. */
  readonly hosts: readonly { readonly host: string; readonly at: string }[];
}

type Raw = Static<typeof ClusterConfigSchema>;

/** What the coordinator gives or does not have: only a VM of `ssihv run` may say it. */
function blameLocal({ nodes = [], vm }: Raw, reader: Reader): void {
  for (const [i, { address }] of nodes.entries()) {
    if (address === undefined) continue;
    const path = ["nodes", i, "address"];
    reader.blame(path, `${show(path)}: in a cluster the coordinator gives addresses: leave it out`);
  }
  if (vm?.balloon === undefined) return;
  reader.blame(["vm", "balloon"], "vm.balloon: only ssihv run gives a VM one: leave it out");
}

function ofRun(raw: Raw, reader: Reader): DeclaredVm[] {
  const { cluster, nodes, vm: { balloon: _, kernel, ...settings } = {} } = raw;
  if (nodes === undefined) {
    if (raw.vm !== undefined) reader.blame(["vm"], "vm without nodes: nodes is missing");
    return [];
  }
  blameLocal(raw, reader);
  if (kernel === undefined) {
    reader.blame(["vm"], `vm.kernel is missing: expected ${PATH_EXPECTED}`);
    return [];
  }
  const shapes = nodes.map(({ cpus, memory }) => ({ cpus, memory }));
  const vm = { ...settings, name: cluster, nodes: shapes, kernel };
  const spec = readVm(vm, { nodes: ["nodes"], settings: ["vm"] }, reader);
  return [{ spec, at: reader.place(["nodes"]), hosts: [] }];
}

function listed({ vms = [] }: Raw, reader: Reader): DeclaredVm[] {
  return vms.map((vm, i) => {
    const settings = ["vms", i];
    const nodes = [...settings, "nodes"];
    return {
      spec: readVm(vm, { nodes, settings }, reader),
      at: reader.place(settings),
      hosts: vm.nodes.flatMap(({ host }, node) => {
        return host === undefined ? [] : [{ host, at: reader.place([...nodes, node, "host"]) }];
      }),
    };
  });
}

/** `file` is named in errors. */
export function parseDeclaredVms(text: string, file: string): DeclaredVm[] {
  const { raw, reader } = readYaml(text, file, ClusterConfigSchema, CLUSTER_WORDS);
  const own = ofRun(raw, reader);
  const declared = [...own, ...listed(raw, reader)];
  if (raw.nodes === undefined && raw.vms === undefined) {
    reader.blame([], `no VM is declared: expected ${CLUSTER_WORDS.whole}`);
  }
  const names = new Map<string, string>();
  for (const [i, { spec, at }] of declared.entries()) {
    const before = names.get(spec.name);
    const path = ["vms", i - own.length, "name"];
    if (before !== undefined) {
      reader.blame(path, `${show(path)}: ${spec.name} is declared at ${before}, too`);
    }
    names.set(spec.name, at);
  }
  reader.refuseMistakes();
  return declared;
}

export function loadDeclaredVms(file: string): DeclaredVm[] {
  const hint = "name a YAML file; ssihv cluster apply --help shows one";
  return parseDeclaredVms(yamlText(file, "--file", hint), file);
}
