// Prometheus' text exposition format, version 0.0.4: families of samples in, text out. What breaks
// its grammar (names, labels) is a defect here and throws; label values may be anything.

export type Labels = Readonly<Record<string, string>>;

export interface Sample {
  readonly labels: Labels;
  readonly value: number;
}

/** A histogram's samples: counts of values up to each bound, the last for all values. */
export interface HistogramSample {
  readonly labels: Labels;
  /** [upper bound, values in this bucket alone], by growing bounds; +Infinity is added. */
  readonly buckets: readonly (readonly [number, number])[];
  readonly sum: number;
  readonly count: number;
}

interface Described {
  /** Ends with its unit, in base units, and with _total where it counts. */
  readonly name: string;
  readonly help: string;
}

export type Family =
  | (Described & { readonly type: "counter" | "gauge"; readonly samples: readonly Sample[] })
  | (Described & { readonly type: "histogram"; readonly samples: readonly HistogramSample[] });

export const CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";

const NAME = /^[a-z][a-z0-9_]*$/;

function labelText(labels: Labels): string {
  const parts = Object.entries(labels).map(([name, value]) => {
    if (!NAME.test(name)) throw new Error(`"${name}" is no label name`);
    const escaped = value.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"');
    return `${name}="${escaped}"`;
  });
  return parts.length === 0 ? "" : `{${parts.join(",")}}`;
}

function numberText(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return "+Inf";
  if (value === Number.NEGATIVE_INFINITY) return "-Inf";
  return Number.isNaN(value) ? "NaN" : String(value);
}

function histogramLines(name: string, sample: HistogramSample): string[] {
  let below = 0;
  const lines = sample.buckets.map(([bound, count]) => {
    below += count;
    return `${name}_bucket${labelText({ ...sample.labels, le: numberText(bound) })} ${below}`;
  });
  return [
    ...lines,
    `${name}_bucket${labelText({ ...sample.labels, le: "+Inf" })} ${sample.count}`,
    `${name}_sum${labelText(sample.labels)} ${numberText(sample.sum)}`,
    `${name}_count${labelText(sample.labels)} ${sample.count}`,
  ];
}

/** Families without samples are left out: there is nothing to say of them yet. */
export function exposition(families: readonly Family[]): string {
  const lines: string[] = [];
  for (const family of families) {
    if (!NAME.test(family.name)) throw new Error(`"${family.name}" is no metric name`);
    if (family.samples.length === 0) continue;
    const help = family.help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
    lines.push(`# HELP ${family.name} ${help}`, `# TYPE ${family.name} ${family.type}`);
    if (family.type === "histogram") {
      for (const sample of family.samples) lines.push(...histogramLines(family.name, sample));
    } else {
      for (const { labels, value } of family.samples) {
        lines.push(`${family.name}${labelText(labels)} ${numberText(value)}`);
      }
    }
  }
  return `${lines.join("\n")}\n`;
}
