import { expect, test } from "bun:test";
import { exposition, type Family } from "./exposition.ts";

test("counters and gauges with their help, type and labels", () => {
  const families: Family[] = [
    {
      ...{ name: "x_total", help: "What happened,\nso far: \\o/", type: "counter" },
      samples: [
        { labels: { vm: 'a"b\\c\nd', node: "0" }, value: 3 },
        { labels: {}, value: 1e21 },
      ],
    },
    { name: "y_seconds", help: "Now.", type: "gauge", samples: [{ labels: {}, value: -0.5 }] },
    { name: "z", help: "Nothing yet.", type: "gauge", samples: [] },
  ];
  expect(exposition(families)).toBe(
    [
      "# HELP x_total What happened,\\nso far: \\\\o/",
      "# TYPE x_total counter",
      'x_total{vm="a\\"b\\\\c\\nd",node="0"} 3',
      "x_total 1e+21",
      "# HELP y_seconds Now.",
      "# TYPE y_seconds gauge",
      "y_seconds -0.5",
      "",
    ].join("\n"),
  );
});

test("buckets of a histogram count everything below their bound", () => {
  const sample = {
    labels: { vm: "a" },
    buckets: [
      [0.001, 2],
      [0.002, 0],
      [0.004, 5],
    ] as const,
    sum: 0.02,
    count: 8,
  };
  const family = { name: "t_seconds", help: "T.", type: "histogram", samples: [sample] } as const;
  expect(exposition([family]).split("\n").slice(2)).toEqual([
    't_seconds_bucket{vm="a",le="0.001"} 2',
    't_seconds_bucket{vm="a",le="0.002"} 2',
    't_seconds_bucket{vm="a",le="0.004"} 7',
    't_seconds_bucket{vm="a",le="+Inf"} 8',
    't_seconds_sum{vm="a"} 0.02',
    't_seconds_count{vm="a"} 8',
    "",
  ]);
});

test("numbers that JSON has no words for", () => {
  const of = (value: number) =>
    exposition([{ name: "x", help: "X.", type: "gauge", samples: [{ labels: {}, value }] }]);
  expect(of(Number.POSITIVE_INFINITY)).toContain("\nx +Inf\n");
  expect(of(Number.NEGATIVE_INFINITY)).toContain("\nx -Inf\n");
  expect(of(Number.NaN)).toContain("\nx NaN\n");
});

test("names that Prometheus refuses are defects", () => {
  const family = (name: string, labels = {}) =>
    ({ name, help: "", type: "gauge", samples: [{ labels, value: 1 }] }) as const;
  expect(() => exposition([family("x-y")])).toThrow('"x-y" is no metric name');
  expect(() => exposition([family("x", { "0a": "" })])).toThrow('"0a" is no label name');
});
