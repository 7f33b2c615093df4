// Guest memory as a field of blocks, each as dark as it has remote faults, in order of addresses.
// The steps are decades and do not depend on what else is there, so a colour means the same at any
// time. A strip below a block has the colour of its home. Pointer and arrow keys tell one block in
// words, the table beside tells the hottest.

import { blockAt, blockCount, type RamPart, sumHeat } from "../../../src/telemetry/heat.ts";
import { HEAT_STEPS, heatStep } from "../drawing.ts";
import { address, bytes, whole } from "../format.ts";
import { el, setText } from "./dom.ts";

export interface HeatView {
  readonly ranges: readonly RamPart[];
  readonly blockBytes: number;
  /** By node. */
  readonly counts: ReadonlyMap<number, readonly number[]>;
}

const CELL_MAX = 18;
const GAP = 1;
const STRIP = 2;
const LABEL_WIDTH = 92;
const LABEL_HEIGHT = 11;
const KEYS: Readonly<Record<string, (columns: number) => number>> = {
  ArrowLeft: () => -1,
  ArrowRight: () => 1,
  ArrowUp: (columns) => -columns,
  ArrowDown: (columns) => columns,
};

/** Room for its address, too. */
function rowHeight(cell: number): number {
  return Math.max(cell + STRIP, LABEL_HEIGHT);
}

export class HeatMap {
  readonly root: HTMLElement;
  private readonly canvas = el("canvas", { tabindex: 0, role: "img" });
  private readonly note = el("p", { class: "note", "aria-live": "polite" });
  private view: HeatView = { ranges: [], blockBytes: 0, counts: new Map() };
  private total: readonly number[] = [];
  private grid = { columns: 1, cell: CELL_MAX, blocks: 0 };
  private looked: number | undefined;

  constructor() {
    const legend = el("ul", { class: "legend", "aria-label": "remote faults in a block" });
    HEAT_STEPS.forEach((step, i) => {
      const item = el("li", {}, i === 0 ? step : `≥ ${step}`);
      item.style.setProperty("--swatch", `var(--heat-${i})`);
      legend.append(item);
    });
    const caption = el("figcaption", {}, el("h3", {}, "Remote faults by guest memory"), legend);
    this.root = el("figure", { id: "heat" }, caption, this.canvas, this.note);
    new ResizeObserver(() => this.draw()).observe(this.root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => {
      const { columns, cell } = this.grid;
      const column = Math.floor((event.offsetX - LABEL_WIDTH) / cell);
      const row = Math.floor(event.offsetY / rowHeight(cell));
      this.look(column < 0 || column >= columns ? undefined : row * columns + column);
    });
    this.canvas.addEventListener("pointerleave", () => this.look(undefined));
    this.canvas.addEventListener("blur", () => this.look(undefined));
    this.canvas.addEventListener("keydown", (event) => {
      const step = KEYS[event.key]?.(this.grid.columns);
      if (step === undefined) return;
      event.preventDefault();
      const at = this.looked === undefined ? 0 : this.looked + step;
      this.look(Math.max(0, Math.min(this.grid.blocks - 1, at)));
    });
  }

  update(view: HeatView): void {
    this.view = view;
    this.total = sumHeat([...view.counts.values()]);
    this.draw();
  }

  private look(block: number | undefined): void {
    this.looked = block !== undefined && block < this.grid.blocks ? block : undefined;
    this.draw();
  }

  private words(): string {
    const { ranges, blockBytes, counts } = this.view;
    if (ranges.length === 0) return "nothing is known of its memory";
    if (this.grid.blocks === 0) return "this VM has no pager: all of its memory is on one node";
    if (this.looked === undefined) {
      const size = bytes(blockBytes);
      return `${whole(this.grid.blocks)} blocks of ${size}; arrow keys or the pointer tell of one`;
    }
    const block = blockAt(ranges, blockBytes, this.looked);
    if (block === undefined) return "";
    const each = [...counts].map(([node, list]) => `node ${node} ${whole(list[block.block] ?? 0)}`);
    const place = `${address(block.gpa)}, ${bytes(block.bytes)}, home node ${block.home}`;
    return `${place}: ${each.join(", ")}`;
  }

  private draw(): void {
    const { ranges, blockBytes } = this.view;
    const blocks = blockCount(ranges, blockBytes);
    const width = this.root.clientWidth;
    const room = width - LABEL_WIDTH;
    // A power of two, so that rows begin at round addresses.
    let columns = 16;
    while (columns < 128 && room / (columns * 2) >= 6 && columns * 4 <= blocks) columns *= 2;
    const cell = Math.min(CELL_MAX, Math.floor(room / columns));
    this.grid = { columns, cell, blocks };
    setText(this.note, this.words());
    const hottest = this.total.reduce((best, count, i) => {
      return count > (this.total[best] ?? 0) ? i : best;
    }, 0);
    const label = `Remote faults in ${whole(blocks)} blocks of guest memory`;
    const most = (this.total[hottest] ?? 0) > 0 ? `; the table beside has the hottest` : "";
    this.canvas.setAttribute("aria-label", label + most);
    if (width === 0 || cell <= 0) return;
    const height = Math.max(1, Math.ceil(blocks / columns)) * rowHeight(cell);
    this.paint(width, blocks === 0 ? 1 : height);
  }

  private paint(width: number, height: number): void {
    const { columns, cell, blocks } = this.grid;
    const { ranges, blockBytes } = this.view;
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    if (context === null) return;
    const style = getComputedStyle(this.canvas);
    const colour = (name: string) => style.getPropertyValue(name);
    context.scale(ratio, ratio);
    context.font = "10px ui-monospace, 'DejaVu Sans Mono', monospace";
    context.textBaseline = "middle";
    for (let block = 0; block < blocks; block++) {
      const found = blockAt(ranges, blockBytes, block);
      if (found === undefined) continue;
      const x = LABEL_WIDTH + (block % columns) * cell;
      const y = Math.floor(block / columns) * rowHeight(cell);
      if (block % columns === 0) {
        context.fillStyle = colour("--muted");
        context.fillText(address(found.gpa), 0, y + (rowHeight(cell) - 1) / 2);
      }
      context.fillStyle = colour(`--heat-${heatStep(this.total[block] ?? 0)}`);
      context.fillRect(x, y, cell - GAP, cell - GAP);
      context.fillStyle = colour(`--node-${found.home % 8}`);
      context.fillRect(x, y + cell - GAP, cell - GAP, 1);
      if (block === this.looked) {
        context.strokeStyle = colour("--text");
        context.strokeRect(x + 0.5, y + 0.5, cell - GAP - 1, cell - GAP - 1);
      }
    }
  }
}
