// What Prometheus is told of a VM's nodes: the counters of their engines under conventional names,
// in base units (seconds, bytes). One table says for each which counter it is.

import type { Family, Labels, Sample } from "./exposition.ts";

/** The counters of an engine as abi.zig names them, in JSON. */
export interface NodeStats {
  readonly node: number;
  /** EngineStats without its histogram. */
  readonly engine: Readonly<Record<string, number>>;
  /** VcpuStats of each vCPU. */
  readonly vcpus: readonly Readonly<Record<string, number>>[];
  /** EngineStats.fault_latency: bucket i counts [2^i, 2^(i+1)) ns. */
  readonly faultLatency: {
    readonly count: number;
    readonly sum_ns: number;
    readonly buckets: readonly number[];
  };
}

/** A node of a VM; without `stats` it did not answer. */
export interface NodeSampled {
  readonly vm: string;
  readonly node: number;
  readonly vcpus: number;
  readonly memoryBytes: number;
  readonly stats?: NodeStats;
}

export const PAGE_BYTES = 4096;
const NS = 1e-9;

interface Told {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge";
  /** Several counters of one family differ by labels. */
  readonly counters: readonly { readonly field: string; readonly labels?: Labels }[];
  /** What one of the counter's units is in the metric's. */
  readonly scale?: number;
}

function counter(name: string, help: string, field: string, scale = 1): Told {
  return { name, help, type: "counter", counters: [{ field }], scale };
}

function gauge(name: string, help: string, field: string, scale = 1): Told {
  return { name, help, type: "gauge", counters: [{ field }], scale };
}

/** `label`, and each of its values with the counter behind it. */
function split(name: string, help: string, label: string, by: Record<string, string>): Told {
  const counters = Object.entries(by).map(([value, field]) => ({
    field,
    labels: { [label]: value },
  }));
  return { name, help, type: "counter", counters };
}

export const ENGINE_METRICS: readonly Told[] = [
  split("ssihv_faults_total", "Page faults taken, by what the guest wanted.", "access", {
    read: "faults_read",
    write: "faults_write",
    upgrade: "faults_upgrade",
  }),
  split("ssihv_faults_answered_total", "Page faults by where the page was.", "from", {
    here: "faults_local",
    elsewhere: "faults_remote",
  }),
  counter("ssihv_faults_spurious_total", "Faults on pages that were there.", "faults_spurious"),
  gauge(
    "ssihv_oldest_fault_seconds",
    "Age of the oldest fault in flight; grows while a guest hangs.",
    "oldest_fault_ns",
    NS,
  ),
  counter(
    "ssihv_vcpu_stalled_seconds_total",
    "Time that vCPUs waited for pages, all of the node together.",
    "stalled_ns",
    NS,
  ),
  gauge("ssihv_stall_longest_seconds", "Longest wait for a page so far.", "stall_ns_max", NS),
  counter("ssihv_pages_sent_total", "Pages sent to other nodes.", "pages_sent"),
  counter("ssihv_pages_received_total", "Pages received from other nodes.", "pages_received"),
  counter("ssihv_invalidations_total", "Copies given up for another node.", "invalidations"),
  counter("ssihv_revokes_deferred_total", "Revokes that waited for a hold.", "revokes_deferred"),
  counter(
    "ssihv_page_table_transfers_total",
    "Guest page tables moved or synchronised.",
    "page_table_transfers",
  ),
  gauge("ssihv_replicated_pages", "Guest page tables that every node has.", "replicated_pages"),
  counter("ssihv_replica_diffs_total", "Changes of replicated tables sent.", "replica_diffs"),
  counter(
    "ssihv_replica_conflicts_total",
    "Entries that two nodes changed at once: must stay 0.",
    "replica_conflicts",
  ),
  counter("ssihv_lane_messages_sent_total", "Messages to other nodes.", "messages_sent"),
  counter("ssihv_lane_messages_received_total", "Messages of other nodes.", "messages_received"),
  counter("ssihv_lane_sent_bytes_total", "Bytes to other nodes.", "bytes_sent"),
  counter("ssihv_lane_received_bytes_total", "Bytes from other nodes.", "bytes_received"),
  gauge("ssihv_lane_queued_bytes", "Bytes that wait for sockets.", "lane_bytes_queued"),
  gauge("ssihv_lane_unacked_bytes", "Bytes that peers have yet to take.", "lane_bytes_unacked"),
  counter("ssihv_lane_reconnects_total", "Connections after a cut.", "lane_reconnects"),
  counter("ssihv_lane_frames_resent_total", "Frames sent again after a cut.", "lane_frames_resent"),
  counter("ssihv_lane_refusals_total", "Frames refused as not the peer's.", "lane_refusals"),
  counter(
    "ssihv_lane_requests_held_total",
    "Times a full lane held vCPUs back.",
    "lane_requests_held",
  ),
  gauge("ssihv_own_bytes", "Own memory here, where it is limited.", "own_pages", PAGE_BYTES),
  gauge("ssihv_cache_bytes", "Other nodes' memory here.", "cache_pages", PAGE_BYTES),
  counter("ssihv_pages_evicted_total", "Pages that had to leave for others.", "pages_evicted"),
  counter("ssihv_pages_returned_total", "Pages that came back soon.", "pages_returned"),
  gauge("ssihv_lent_bytes", "Memory node: in use by others.", "frames_held", PAGE_BYTES),
  counter("ssihv_pages_discarded_total", "Own pages that the guest gave back.", "pages_discarded"),
  counter("ssihv_frames_freed_total", "Lent frames that came free so.", "frames_freed"),
  counter("ssihv_discards_refused_total", "Page tables given back: kept.", "discards_refused"),
  gauge("ssihv_balloon_target_bytes", "What the balloon is to have.", "balloon_target", PAGE_BYTES),
  gauge("ssihv_balloon_bytes", "What it has by the guest's word.", "balloon_actual", PAGE_BYTES),
  counter(
    "ssihv_balloon_inflated_bytes_total",
    "Memory given into the balloon.",
    "balloon_inflated",
    PAGE_BYTES,
  ),
  counter(
    "ssihv_balloon_reported_bytes_total",
    "Memory that the guest reported free.",
    "balloon_reported",
    PAGE_BYTES,
  ),
  counter("ssihv_balloon_faults_total", "Times its driver broke the rules.", "balloon_faults"),
  counter("ssihv_freezes_total", "Times the VM stood still for another node.", "freezes"),
  counter("ssihv_frozen_seconds_total", "Time the VM stood still.", "frozen_ns", NS),
  counter(
    "ssihv_clock_checks_total",
    "Comparisons of the guest's TSC here with another host's.",
    "clock_checks",
  ),
  gauge("ssihv_clock_error_seconds", "What the newest can be off by.", "clock_error_ns", NS),
  counter("ssihv_clock_steps_total", "Steps of it to a faster host's.", "clock_steps"),
  counter("ssihv_clock_stepped_seconds_total", "How far in all.", "clock_stepped_ns", NS),
];

export const VCPU_METRICS: readonly Told[] = [
  counter("ssihv_vcpu_exits_total", "Exits from guest to host.", "exits"),
  split("ssihv_vcpu_exits_answered_total", "Exits that left the node's engine.", "by", {
    control_plane: "io_typescript",
    other_node: "io_remote",
  }),
  counter("ssihv_vcpu_halts_total", "Times the vCPU went idle.", "halts"),
  counter("ssihv_vcpu_interrupts_total", "Interrupts given to the vCPU.", "interrupts"),
  split("ssihv_vcpu_ipis_total", "Interrupts the vCPU sent to others.", "to", {
    any: "ipis_sent",
    other_node: "ipis_remote",
  }),
  counter("ssihv_vcpu_unclaimed_total", "Accesses to what nobody owns.", "unclaimed"),
];

function familyOf(
  told: Told,
  sources: readonly (readonly [Labels, Readonly<Record<string, number>>])[],
): Family {
  const { name, help, type, counters, scale = 1 } = told;
  const samples = sources.flatMap(([labels, values]) =>
    counters.map(({ field, labels: more }): Sample => {
      return { labels: { ...labels, ...more }, value: (values[field] ?? 0) * scale };
    }),
  );
  return { name, help, type, samples };
}

/** Below 1 us nothing crosses a link, above 17 s every node is dead. */
const FIRST_BUCKET = 10;
const LAST_BUCKET = 33;

function latencyBuckets(counts: readonly number[]): (readonly [number, number])[] {
  const below = counts.slice(0, FIRST_BUCKET).reduce((sum, count) => sum + count, 0);
  return counts.slice(FIRST_BUCKET, LAST_BUCKET + 1).map((count, i) => {
    const bound = 2 ** (FIRST_BUCKET + i + 1) * NS;
    return [bound, i === 0 ? below + count : count] as const;
  });
}

export function nodeFamilies(nodes: readonly NodeSampled[]): Family[] {
  const labelsOf = ({ vm, node }: NodeSampled): Labels => ({ vm, node: String(node) });
  const of = (value: (node: NodeSampled) => number): Sample[] =>
    nodes.map((node) => ({ labels: labelsOf(node), value: value(node) }));
  const answered = nodes.flatMap((node) =>
    node.stats === undefined ? [] : [{ labels: labelsOf(node), stats: node.stats }],
  );
  const engines = answered.map(({ labels, stats }) => [labels, stats.engine] as const);
  const vcpus = answered.flatMap(({ labels, stats }) =>
    stats.vcpus.map((values, i) => [{ ...labels, vcpu: String(i) }, values] as const),
  );
  return [
    {
      ...{ name: "ssihv_node_up", help: "Whether the node's engine answers.", type: "gauge" },
      samples: of(({ stats }) => (stats === undefined ? 0 : 1)),
    },
    {
      ...{ name: "ssihv_node_vcpus", help: "vCPUs of the node.", type: "gauge" },
      samples: of(({ vcpus }) => vcpus),
    },
    {
      ...{ name: "ssihv_node_memory_bytes", help: "Guest memory of the node.", type: "gauge" },
      samples: of(({ memoryBytes }) => memoryBytes),
    },
    {
      name: "ssihv_remote_fault_duration_seconds",
      help: "Time of a fault on a page of another node.",
      type: "histogram",
      samples: answered.map(({ labels, stats: { faultLatency } }) => ({
        labels,
        buckets: latencyBuckets(faultLatency.buckets),
        sum: faultLatency.sum_ns * NS,
        count: faultLatency.count,
      })),
    },
    ...ENGINE_METRICS.map((told) => familyOf(told, engines)),
    ...VCPU_METRICS.map((told) => familyOf(told, vcpus)),
  ];
}
