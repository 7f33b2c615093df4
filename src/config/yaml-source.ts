// A YAML text that still knows where everything stood, so that a mistake is reported as
// file:line:col. Refuses what YAML allows and people get wrong: duplicate keys, several documents,
// keys that are not text, and aliases that unfold into more than a file holds.

import { isMap, isPair, isScalar, LineCounter, type Node, parseDocument } from "yaml";

import { messageOf, SsihvError } from "../base/errors.ts";

export interface Mistake {
  /** Offset into the text. */
  readonly offset: number;
  readonly text: string;
}

/** Object keys and list indexes from the root. */
export type Path = readonly (string | number)[];

/** A configuration is small; a bigger file is the wrong file. */
const BYTES_MAX = 1 << 20;
const MISTAKES_SHOWN_MAX = 20;

export class YamlSource {
  readonly value: unknown;
  private readonly file: string;
  private readonly hint: string;
  private readonly lines = new LineCounter();
  private readonly document: ReturnType<typeof parseDocument>;

  /** `hint`: what to do about mistakes. */
  constructor(text: string, file: string, hint: string) {
    this.file = file;
    this.hint = hint;
    if (text.length > BYTES_MAX) {
      throw new SsihvError("config_invalid", `${file} is larger than ${BYTES_MAX} bytes`, {
        hint: "is this the right file?",
      });
    }
    this.document = parseDocument(text, {
      lineCounter: this.lines,
      prettyErrors: false,
      uniqueKeys: true,
      stringKeys: true,
      version: "1.2",
      // Custom tags stay text; warnings about them would be noise.
      logLevel: "error",
    });
    const { errors } = this.document;
    if (errors.length > 0) {
      this.refuse(errors.map((error) => ({ offset: error.pos[0], text: plain(error.message) })));
    }
    this.value = this.unfold();
  }

  /** Throws `config_invalid` with every mistake on a line of its own, in file order. */
  refuse(mistakes: readonly Mistake[]): never {
    const sorted = [...mistakes].sort((a, b) => a.offset - b.offset);
    const lines = sorted
      .slice(0, MISTAKES_SHOWN_MAX)
      .map(({ offset, text }) => `${this.place(offset)}: ${text}`);
    const more = sorted.length - lines.length;
    if (more > 0) lines.push(`and ${more} more`);
    throw new SsihvError("config_invalid", lines.join("\n"), {
      hint: this.hint,
    });
  }

  /** "file:line:col". */
  place(offset: number): string {
    const { line, col } = this.lines.linePos(offset);
    return `${this.file}:${Math.max(line, 1)}:${Math.max(col, 1)}`;
  }

  /** Offset of the value at `path`, or of the nearest thing above it that exists. */
  offsetOf(path: Path): number {
    for (let length = path.length; length >= 0; length--) {
      const node = length === 0 ? this.document.contents : this.nodeAt(path.slice(0, length));
      if (node?.range) return node.range[0];
    }
    return 0;
  }

  /** Offset of the key itself: what an unknown key is reported at. */
  offsetOfKey(path: Path): number {
    const parent = path.length === 1 ? this.document.contents : this.nodeAt(path.slice(0, -1));
    const key = path[path.length - 1];
    if (isMap(parent)) {
      for (const pair of parent.items) {
        if (isPair(pair) && isScalar(pair.key) && pair.key.value === key && pair.key.range) {
          return pair.key.range[0];
        }
      }
    }
    return this.offsetOf(path);
  }

  private nodeAt(path: Path): Node | undefined {
    return this.document.getIn(path, true) as Node | undefined;
  }

  private unfold(): unknown {
    try {
      return this.document.toJS({ maxAliasCount: 100 });
    } catch (error) {
      const why = messageOf(error);
      return this.refuse([{ offset: 0, text: plain(why) }]);
    }
  }
}

/** The parser's messages end with a period or carry a code frame; ours are one clause. */
function plain(message: string): string {
  return (message.split("\n")[0] ?? "").replace(/[.:]\s*$/, "");
}
