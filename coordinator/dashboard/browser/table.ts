// A table that is updated in place: a row keeps its elements as long as its key is there, and only
// cells whose text changed are touched.

import { el, setAttribute, setText } from "./dom.ts";

export type Tone = "good" | "warn" | "bad" | "muted" | undefined;

/** From here on a value is marked: half of the vCPUs' time, a second in a fault. */
export const STALLED_MUCH = 0.5;
export const OLD_US = 1e6;

export function over(value: number | undefined, limit: number, tone: Tone): Tone {
  return (value ?? 0) > limit ? tone : undefined;
}

export interface Column<T> {
  readonly head: string;
  /** What the column is, for whoever rests on its head. */
  readonly hint?: string;
  /** Numbers stand to the right. */
  readonly number?: boolean;
  readonly css?: string;
  /** As much as has room in a narrow column, the rest on a rest of the pointer. */
  readonly short?: boolean;
  /** Words of any length: two lines of them, all on a click. */
  readonly wide?: boolean;
  text(row: T): string;
  tone?(row: T): Tone;
  /** 0..1: a bar in the cell. */
  share?(row: T): number | undefined;
  /** Where the cell's text leads to. */
  link?(row: T): string;
  /** Drawn in the cell instead of a text. */
  draw?(row: T, cell: HTMLTableCellElement): void;
}

export class DataTable<T> {
  readonly root: HTMLElement;
  private readonly columns: readonly Column<T>[];
  private readonly key: (row: T) => string;
  private readonly isCurrent: (row: T) => boolean;
  private readonly body = el("tbody");
  private readonly empty: HTMLElement;
  private readonly rows = new Map<string, HTMLTableRowElement>();
  private readonly box: HTMLElement;

  constructor(options: {
    readonly label: string;
    readonly columns: readonly Column<T>[];
    key(row: T): string;
    isCurrent?(row: T): boolean;
    readonly empty: string;
    readonly css?: string;
  }) {
    this.columns = options.columns;
    this.key = options.key;
    this.isCurrent = options.isCurrent ?? (() => false);
    const heads = this.columns.map(({ head, hint, number }) =>
      el("th", { scope: "col", title: hint, class: number === true ? "number" : undefined }, head),
    );
    const table = el("table", { "aria-label": options.label });
    table.append(el("thead", {}, el("tr", {}, ...heads)), this.body);
    // What is wider than the screen is moved in a box of its own, by keys, too.
    this.box = el(
      "div",
      {
        class: `scroll ${options.css ?? ""}`,
        tabindex: 0,
        role: "region",
        "aria-label": options.label,
      },
      table,
    );
    this.empty = el("p", { class: "empty" }, options.empty);
    this.root = el("div", {}, this.box, this.empty);
    this.update([]);
  }

  update(list: readonly T[]): void {
    this.box.hidden = list.length === 0;
    this.empty.hidden = list.length > 0;
    const keys = new Set(list.map(this.key));
    for (const [key, row] of this.rows) {
      if (keys.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
    list.forEach((data, i) => {
      const key = this.key(data);
      const row = this.rows.get(key) ?? this.newRow();
      this.rows.set(key, row);
      if (this.body.rows[i] !== row) this.body.insertBefore(row, this.body.rows[i] ?? null);
      this.fillRow(row, data);
    });
  }

  private newRow(): HTMLTableRowElement {
    const cells = this.columns.map(({ number, css, link, share, short, wide }) => {
      const classes = [
        ...[number === true && "number", css, share !== undefined && "share"],
        ...[short === true && "short", wide === true && "wide"],
      ];
      const cell = el("td", { class: classes.filter(Boolean).join(" ") || undefined });
      if (link !== undefined) cell.append(el("a"));
      if (wide === true) {
        cell.append(el("div", { class: "clamp" }));
        cell.addEventListener("click", () => cell.classList.toggle("open"));
      }
      return cell;
    });
    return el("tr", {}, ...cells);
  }

  private fillRow(row: HTMLTableRowElement, data: T): void {
    setAttribute(row, "aria-current", this.isCurrent(data) ? "true" : undefined);
    this.columns.forEach((column, i) => {
      const cell = row.cells[i];
      if (cell === undefined) return;
      if (column.draw !== undefined) {
        column.draw(data, cell);
        return;
      }
      const inner = cell.firstElementChild;
      if (column.link !== undefined && inner !== null) {
        setAttribute(inner, "href", column.link(data));
      }
      setText(inner ?? cell, column.text(data));
      if (column.wide || column.short) setAttribute(cell, "title", column.text(data) || undefined);
      setAttribute(cell, "data-tone", column.tone?.(data));
      const share = column.share?.(data);
      if (column.share !== undefined) {
        cell.style.setProperty("--share", String(Math.min(1, Math.max(0, share ?? 0))));
      }
    });
  }
}
