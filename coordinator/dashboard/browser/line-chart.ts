// Lines over the last minutes, one a node, drawn as SVG at the size of their box. The caption has
// the newest values as text, or those at the pointer.

import { niceMax, pathOf } from "../drawing.ts";
import { clock, NONE } from "../format.ts";
import { REMEMBERED } from "../history.ts";
import { el, nodeColour, setText, svg } from "./dom.ts";

export interface Series {
  readonly label: string;
  /** Of its colour. */
  readonly index: number;
  readonly points: readonly { readonly at: number; readonly value: number | null }[];
}

/** What is shown at first, until there is more to remember. */
const SHOWN_MIN = 60;
const HEIGHT = 96;
/** Samples of a sparkline. */
const SPARK_MIN = 30;
const MARGIN = { left: 46, right: 6, top: 6, bottom: 14 };

export class LineChart {
  readonly root: HTMLElement;
  private readonly write: (value: number) => string;
  private readonly title: string;
  private readonly drawing = svg("svg", { class: "chart", role: "img", height: HEIGHT });
  private readonly legend = el("ul", { class: "legend" });
  private series: readonly Series[] = [];
  private now = 0;
  private edge = "";
  private pointer: number | undefined;

  constructor(title: string, write: (value: number) => string) {
    this.title = title;
    this.write = write;
    const caption = el("figcaption", {}, el("h3", {}, title), this.legend);
    this.root = el("figure", {}, caption, this.drawing);
    new ResizeObserver(() => this.draw()).observe(this.root);
    this.drawing.addEventListener("pointermove", (event) => {
      this.pointer = event.offsetX;
      this.draw();
    });
    this.drawing.addEventListener("pointerleave", () => {
      this.pointer = undefined;
      this.draw();
    });
  }

  /** `now`: the time at the right edge, which is called `edge`. */
  update(now: number, edge: string, series: readonly Series[]): void {
    this.now = now;
    this.edge = edge;
    this.series = series;
    this.draw();
  }

  private draw(): void {
    const width = this.root.clientWidth;
    if (width === 0) return;
    const plot = {
      left: MARGIN.left,
      right: width - MARGIN.right,
      top: MARGIN.top,
      bottom: HEIGHT - MARGIN.bottom,
    };
    const first = Math.min(this.now, ...this.series.map(({ points }) => points[0]?.at ?? this.now));
    const known = Math.ceil((this.now - first) / 60_000) * 60;
    const span = Math.min(REMEMBERED, Math.max(SHOWN_MIN, known)) * 1000;
    const from = this.now - span;
    const values = this.series.flatMap(({ points }) => points.map(({ value }) => value ?? 0));
    const max = niceMax(Math.max(0, ...values));
    const x = (at: number) => plot.left + ((at - from) / span) * (plot.right - plot.left);
    const y = (value: number) => plot.bottom - (value / max) * (plot.bottom - plot.top);
    const parts: Node[] = [0, 0.5, 1].flatMap((share) => {
      const at = Math.round(y(share * max)) + 0.5;
      return [
        svg("line", { x1: plot.left, x2: plot.right, y1: at, y2: at }),
        svg("text", { x: plot.left - 5, y: at + 3, "text-anchor": "end" }, this.write(share * max)),
      ];
    });
    parts.push(
      svg("text", { x: plot.left, y: HEIGHT - 2 }, `-${span / 60_000} min`),
      svg("text", { x: plot.right, y: HEIGHT - 2, "text-anchor": "end" }, this.edge),
    );
    for (const { points, index } of this.series) {
      const line = points.map(({ at, value }) =>
        value === null ? null : ([x(at), y(value)] as const),
      );
      const path = svg("path", { class: "series", d: pathOf(line) });
      path.style.stroke = nodeColour(index);
      parts.push(path);
    }
    let looked: number | undefined;
    if (this.pointer !== undefined && this.pointer >= plot.left && this.pointer <= plot.right) {
      const share = (this.pointer - plot.left) / (plot.right - plot.left);
      looked = from + share * span;
      const at = Math.round(this.pointer) + 0.5;
      parts.push(
        svg("line", { class: "cursor", x1: at, x2: at, y1: plot.top, y2: plot.bottom }),
        svg(
          "text",
          { x: Math.min(at + 4, plot.right - 46), y: plot.top + 8, class: "mark" },
          clock(new Date(looked)),
        ),
      );
    }
    this.drawing.setAttribute("width", String(width));
    this.drawing.replaceChildren(...parts);
    this.tellValues(looked);
  }

  private tellValues(looked: number | undefined): void {
    const texts = this.series.map(({ label, points }) => {
      const point = looked === undefined ? points.at(-1) : nearest(points, looked);
      const value = point?.value ?? null;
      return [label, value === null ? NONE : this.write(value)] as const;
    });
    while (this.legend.children.length > texts.length) this.legend.lastChild?.remove();
    texts.forEach(([label, value], i) => {
      let item = this.legend.children[i];
      if (!(item instanceof HTMLElement)) {
        item = el("li", {}, el("span"), " ", el("b"));
        this.legend.append(item);
      }
      (item as HTMLElement).style.setProperty("--swatch", nodeColour(this.series[i]?.index ?? 0));
      const [name, number] = [item.querySelector("span"), item.querySelector("b")];
      if (name !== null) setText(name, label);
      if (number !== null) setText(number, value);
    });
    const spoken = texts.map(([label, value]) => `${label} ${value}`).join(", ");
    this.drawing.setAttribute("aria-label", `${this.title}: ${spoken}`);
  }
}

function nearest(points: Series["points"], at: number) {
  let best: Series["points"][number] | undefined;
  for (const point of points) {
    if (best === undefined || Math.abs(point.at - at) < Math.abs(best.at - at)) best = point;
  }
  return best;
}

/** A line of a table's row: shape only. */
export function sparkline(values: readonly (number | null)[]): SVGSVGElement {
  const [width, height] = [90, 16];
  const length = Math.max(SPARK_MIN, values.length);
  const max = Math.max(1, ...values.map((value) => value ?? 0));
  const offset = length - values.length;
  const points = values.map((value, i) =>
    value === null
      ? null
      : ([
          ((offset + i) / Math.max(1, length - 1)) * width,
          height - 1 - (value / max) * (height - 2),
        ] as const),
  );
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("path", { d: pathOf(points) }),
  );
}
