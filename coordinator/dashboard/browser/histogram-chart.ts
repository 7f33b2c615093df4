// How long remote faults took: a bar for each power of two, stacked by node, with the median and
// the 99th percentile marked.

import { micros, whole } from "../format.ts";
import { type Bar, histogramView } from "../histogram-view.ts";
import { el, nodeColour, setText, svg } from "./dom.ts";

const HEIGHT = 150;
const MARGIN = { left: 46, right: 6, top: 14, bottom: 16 };
/** Room for a bound's words below its bar. */
const LABEL_WIDTH = 48;

export class HistogramChart {
  readonly root: HTMLElement;
  private readonly drawing = svg("svg", { class: "chart", role: "img", height: HEIGHT });
  private readonly note = el("p", { class: "note" });
  private nodes: readonly { readonly index: number; readonly counts: readonly number[] }[] = [];

  constructor() {
    const caption = el("figcaption", {}, el("h3", {}, "Time of remote faults"));
    this.root = el("figure", { id: "latency" }, caption, this.drawing, this.note);
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  update(nodes: readonly { readonly index: number; readonly counts: readonly number[] }[]): void {
    this.nodes = nodes;
    this.draw();
  }

  private draw(): void {
    const view = histogramView(this.nodes.map(({ counts }) => counts));
    const words =
      view.count === 0
        ? "none in this time"
        : `${whole(view.count)} remote faults: median ${micros(view.medianUs)}, ` +
          `p99 ${micros(view.p99Us)}`;
    setText(this.note, words);
    this.drawing.setAttribute("aria-label", `Time of remote faults: ${words}`);
    const width = this.root.clientWidth;
    if (width === 0) return;
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const each = (right - MARGIN.left) / view.bars.length;
    const max = Math.max(1, ...view.bars.map(({ total }) => total));
    const height = (count: number) => (count / max) * (bottom - MARGIN.top);
    const left = (i: number) => MARGIN.left + i * each;
    const parts: Node[] = [
      svg("line", { x1: MARGIN.left, x2: right, y1: bottom + 0.5, y2: bottom + 0.5 }),
      svg("text", { x: MARGIN.left - 5, y: MARGIN.top + 4, "text-anchor": "end" }, whole(max)),
      svg("text", { x: MARGIN.left - 5, y: bottom + 3, "text-anchor": "end" }, "0"),
    ];
    const step = Math.ceil(LABEL_WIDTH / each);
    view.bars.forEach((bar, i) => {
      parts.push(...this.stack(bar, left(i), each, bottom, height));
      if ((i + 1) % step === 0 && i + 1 < view.bars.length) {
        const x = left(i + 1);
        parts.push(svg("text", { x, y: HEIGHT - 3, "text-anchor": "middle" }, micros(bar.toUs)));
        parts.push(svg("line", { x1: x, x2: x, y1: bottom, y2: bottom + 3 }));
      }
    });
    if (view.count > 0) {
      for (const [us, name] of [
        [view.medianUs, "median"],
        [view.p99Us, "p99"],
      ] as const) {
        const x = Math.round(left(placeOf(view.bars, us))) + 0.5;
        const anchor = name === "median" ? "end" : "start";
        const shift = name === "median" ? -3 : 3;
        parts.push(
          svg("line", { class: "mark", x1: x, x2: x, y1: MARGIN.top - 4, y2: bottom }),
          svg("text", { class: "mark", x: x + shift, y: 9, "text-anchor": anchor }, name),
        );
      }
    }
    this.drawing.setAttribute("width", String(width));
    this.drawing.replaceChildren(...parts);
  }

  private stack(
    bar: Bar,
    x: number,
    width: number,
    bottom: number,
    height: (count: number) => number,
  ): Node[] {
    let top = bottom;
    return bar.counts.flatMap((count, k) => {
      if (count === 0) return [];
      // What is there is seen.
      const tall = Math.max(1, height(count));
      top -= tall;
      const rect = svg("rect", { x: x + 1, y: top, width: Math.max(1, width - 2), height: tall });
      rect.style.fill = nodeColour(this.nodes[k]?.index ?? 0);
      const words = `${micros(bar.fromUs)} to ${micros(bar.toUs)}: ${whole(count)}`;
      rect.append(svg("title", {}, words));
      return [rect];
    });
  }
}

/** In bars from the left, within a bar by its logarithm. */
function placeOf(bars: readonly Bar[], us: number): number {
  const i = bars.findIndex(({ toUs }) => us < toUs);
  const bar = bars[i];
  if (bar === undefined) return bars.length;
  return bar.fromUs === 0 ? us / bar.toUs : i + Math.log2(us / bar.fromUs);
}
