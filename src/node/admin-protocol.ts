// The admin protocol of a running VM, on a Unix socket of its user: one JSON object a line, a
// request and then its reply, {"id":1,"op":"show"} -> {"protocol":1,"id":1,"ok":{...}} or
// {"protocol":1,"id":1,"error":{"code":..,"message":..,"hint":..}}.
// What comes from the other side is not trusted to be of this build, nor to be any of this: lines
// have a length, requests are read field by field, and everything else gets an error back.

import { isErrorCode, messageOf, SsihvError } from "../base/errors.ts";

export const ADMIN_PROTOCOL = 1;
export const REQUEST_BYTES_MAX = 4096;
/** A reply about 1024 pages of a VM of many nodes. */
export const REPLY_BYTES_MAX = 16 << 20;

export type AdminRequest =
  | { readonly op: "list" }
  | { readonly op: "show" }
  | { readonly op: "stats" }
  | { readonly op: "heat" }
  | { readonly op: "pages"; readonly gpa: number; readonly count: number }
  | { readonly op: "balloon"; readonly bytes: number };

const OPS = ["list", "show", "stats", "heat", "pages", "balloon"];
const NEWLINE = 0x0a;

/** Cuts bytes into lines; throws on one that is too long. */
export class LineReader {
  private readonly bytesMax: number;
  private parts: Uint8Array[] = [];
  private held = 0;

  constructor(bytesMax: number) {
    this.bytesMax = bytesMax;
  }

  push(chunk: Uint8Array): string[] {
    const lines: string[] = [];
    let rest = chunk;
    for (;;) {
      const end = rest.indexOf(NEWLINE);
      const piece = end < 0 ? rest : rest.subarray(0, end);
      this.held += piece.length;
      if (this.held > this.bytesMax) {
        throw new SsihvError("request_invalid", `a line is longer than ${this.bytesMax} bytes`);
      }
      // The chunk is its giver's again when this returns.
      this.parts.push(piece.slice());
      if (end < 0) return lines;
      lines.push(new TextDecoder().decode(Buffer.concat(this.parts)));
      this.parts = [];
      this.held = 0;
      rest = rest.subarray(end + 1);
    }
  }
}

function object(line: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new SsihvError("request_invalid", "a line is not JSON", {
      hint: 'one object a line, such as {"id":1,"op":"list"}',
      cause,
    });
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>;
  }
  throw new SsihvError("request_invalid", "a line is not a JSON object", {
    hint: 'one object a line, such as {"id":1,"op":"list"}',
  });
}

function whole(value: unknown, field: string): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw new SsihvError("request_invalid", `"${field}" is not a whole number`, {
    hint: 'for example {"id":1,"op":"pages","gpa":1048576,"count":1}',
  });
}

/** The number a reply to this line carries; null when the line has none. */
export function requestId(line: string): number | null {
  try {
    return whole(object(line)["id"], "id");
  } catch {
    // What is wrong with the line is the reply's to say.
    return null;
  }
}

export function parseRequest(line: string): AdminRequest {
  const { id, op, gpa, count, bytes } = object(line);
  whole(id, "id");
  switch (op) {
    case "list":
    case "show":
    case "stats":
    case "heat":
      return { op };
    case "pages":
      return { op, gpa: whole(gpa, "gpa"), count: whole(count, "count") };
    case "balloon":
      return { op, bytes: whole(bytes, "bytes") };
    default:
      throw new SsihvError("request_invalid", `there is no op ${JSON.stringify(op ?? null)}`, {
        hint: `one of ${OPS.join(", ")}`,
      });
  }
}

export function okReply(id: number | null, ok: unknown): string {
  return `${JSON.stringify({ protocol: ADMIN_PROTOCOL, id, ok })}\n`;
}

export function errorReply(id: number | null, error: unknown): string {
  const ours = error instanceof SsihvError;
  const code = ours ? error.code : "defect_found";
  const message = messageOf(error);
  const hint = ours && error.hint !== undefined ? { hint: error.hint } : {};
  return `${JSON.stringify({ protocol: ADMIN_PROTOCOL, id, error: { code, message, ...hint } })}\n`;
}

/** What a reply says; throws the error in it. */
export function parseReply(line: string): unknown {
  const reply = object(line);
  if (reply["protocol"] !== ADMIN_PROTOCOL) {
    throw new SsihvError("admin_failed", "the VM is run by an ssihv of another version", {
      hint: "ask with the same ssihv that runs it",
    });
  }
  const error = reply["error"];
  if (typeof error !== "object" || error === null) return reply["ok"];
  const { code, message, hint } = error as Record<string, unknown>;
  const known = typeof code === "string" && isErrorCode(code) ? code : "admin_failed";
  throw new SsihvError(known, String(message), {
    ...(typeof hint === "string" && { hint }),
  });
}
