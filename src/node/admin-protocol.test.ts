import { expect, test } from "bun:test";
import fc from "fast-check";

import { SsihvError } from "../base/errors.ts";
import {
  errorReply,
  LineReader,
  okReply,
  parseReply,
  parseRequest,
  requestId,
} from "./admin-protocol.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

function errorOf(act: () => unknown): SsihvError {
  try {
    act();
  } catch (error) {
    if (error instanceof SsihvError) return error;
    throw error;
  }
  throw new Error("no error");
}

test("lines come whole, however the bytes come", () => {
  const reader = new LineReader(16);
  expect(reader.push(bytes("a\nbé"))).toEqual(["a"]);
  const tail = bytes("é");
  expect(reader.push(tail.subarray(0, 1))).toEqual([]);
  expect(reader.push(tail.subarray(1))).toEqual([]);
  expect(reader.push(bytes("\n\nlast\nno"))).toEqual(["béé", "", "last"]);
  expect(reader.push(bytes("t yet\n"))).toEqual(["not yet"]);
});

test("the bytes given may be reused by their giver", () => {
  const reader = new LineReader(16);
  const chunk = bytes("abc");
  reader.push(chunk);
  chunk.fill(0x78);
  expect(reader.push(bytes("\n"))).toEqual(["abc"]);
});

test("a line that is too long is refused, in one piece or many", () => {
  expect(new LineReader(4).push(bytes("1234\n"))).toEqual(["1234"]);
  expect(errorOf(() => new LineReader(4).push(bytes("12345\n"))).code).toBe("request_invalid");
  const slow = new LineReader(4);
  slow.push(bytes("123"));
  expect(errorOf(() => slow.push(bytes("45"))).message).toContain("longer than 4 bytes");
});

test("requests are read field by field", () => {
  expect(parseRequest('{"id":1,"op":"list"}')).toEqual({ op: "list" });
  expect(parseRequest('{"id":1,"op":"pages","gpa":4096,"count":2,"more":1}')).toEqual({
    op: "pages",
    gpa: 4096,
    count: 2,
  });
  for (const line of [
    "",
    "garbage",
    "[1]",
    "null",
    '{"op":"list"}',
    '{"id":"1","op":"list"}',
    '{"id":1}',
    '{"id":1,"op":"kill"}',
    '{"id":1,"op":{"a":1}}',
    '{"id":1,"op":"balloon"}',
    '{"id":1,"op":"balloon","bytes":-4096}',
    '{"id":1,"op":"pages","gpa":-1,"count":1}',
    '{"id":1,"op":"pages","gpa":1.5,"count":1}',
    '{"id":1,"op":"pages","gpa":"0x1000","count":1}',
    '{"id":1,"op":"pages","gpa":9007199254740992,"count":1}',
    '{"id":1,"op":"pages","gpa":0}',
  ]) {
    expect(errorOf(() => parseRequest(line)).code).toBe("request_invalid");
  }
  expect(errorOf(() => parseRequest('{"id":1,"op":"kill"}')).hint).toBe(
    "one of list, show, stats, heat, pages, balloon",
  );
  expect(requestId('{"id":7,"op":"kill"}')).toBe(7);
  expect(requestId("garbage")).toBeNull();
});

test("replies carry answers, errors with their code, and their version", () => {
  expect(parseReply(okReply(1, { a: [1] }))).toEqual({ a: [1] });
  const refused = new SsihvError("gpa_invalid", "not RAM", { hint: "elsewhere" });
  const told = errorOf(() => parseReply(errorReply(1, refused)));
  expect([told.code, told.message, told.hint]).toEqual(["gpa_invalid", "not RAM", "elsewhere"]);
  expect(errorOf(() => parseReply(errorReply(1, new Error("oops")))).code).toBe("defect_found");
  const odd = '{"protocol":1,"id":1,"error":{"code":"no_such_code","message":5}}';
  expect(errorOf(() => parseReply(odd)).code).toBe("admin_failed");
  expect(errorOf(() => parseReply('{"protocol":2,"id":1,"ok":{}}')).message).toContain("version");
  expect(errorOf(() => parseReply("noise")).code).toBe("request_invalid");
});

test("however bytes are cut, the same lines come out", () => {
  const cut = fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 20 });
  fc.assert(
    fc.property(cut, (chunks) => {
      const reader = new LineReader(10_000);
      const lines = chunks.flatMap((chunk) => reader.push(chunk));
      const whole = new LineReader(10_000).push(Buffer.concat(chunks));
      expect(lines).toEqual(whole);
    }),
  );
});

test("whatever a line holds, it is a request or an error of ours", () => {
  const field = fc.constantFrom("id", "op", "gpa", "count", "more");
  const value = fc.oneof(fc.json(), fc.constantFrom('"list"', '"pages"', "1", "4096", "-1"));
  const object = fc
    .array(fc.tuple(field, value), { maxLength: 5 })
    .map((fields) => `{${fields.map(([name, text]) => `"${name}":${text}`).join(",")}}`);
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json(), object), (line) => {
      try {
        expect(["list", "show", "stats", "heat", "pages", "balloon"]).toContain(
          parseRequest(line).op,
        );
      } catch (error) {
        expect(error).toBeInstanceOf(SsihvError);
        expect(parseReplyCode(errorReply(requestId(line), error))).toBe("request_invalid");
      }
    }),
  );
});

function parseReplyCode(reply: string): string {
  return errorOf(() => parseReply(reply.trimEnd())).code;
}
