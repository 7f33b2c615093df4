import { expect, test } from "bun:test";

import { type ConsoleInput, EscapeParser } from "./console-escape.ts";

function parse(...chunks: string[]): string[] {
  const parser = new EscapeParser();
  const show = (input: ConsoleInput) =>
    input.kind === "data" ? `d:${new TextDecoder().decode(input.bytes)}` : `c:${input.command}`;
  return chunks.flatMap((chunk) => parser.push(new TextEncoder().encode(chunk)).map(show));
}

test("plain bytes pass through, Ctrl-C included", () => {
  expect(parse("ls\r", "\x03")).toEqual(["d:ls\r", "d:\x03"]);
  expect(parse("")).toEqual([]);
});

test("commands in either case, in the middle of data", () => {
  expect(parse("ab\x01xcd")).toEqual(["d:ab", "c:quit", "d:cd"]);
  expect(parse("\x01X\x01h\x01?\x01P\x01n\x01r")).toEqual([
    "c:quit",
    "c:help",
    "c:help",
    "c:pause",
    "c:nmi",
    "c:report",
  ]);
});

test("doubled escape is one literal byte", () => {
  expect(parse("a\x01\x01b")).toEqual(["d:a", "d:\x01b"]);
  expect(parse("\x01\x01\x01\x01")).toEqual(["d:\x01", "d:\x01"]);
  expect(parse("\x01\x01\x01x")).toEqual(["d:\x01", "c:quit"]);
});

test("an escape split over chunks works, and arms nothing after it", () => {
  expect(parse("a\x01", "x", "x")).toEqual(["d:a", "c:quit", "d:x"]);
  expect(parse("\x01", "", "\x01", "z")).toEqual(["d:\x01", "d:z"]);
});

test("an unknown key is swallowed and told", () => {
  expect(parse("\x01qz")).toEqual(["c:unknown", "d:z"]);
});

test("every split of a stream gives the same bytes and commands", () => {
  const text = "one\x01\x01two\x01xthree\x01h\x01\x01\x01nfour";
  const whole = parse(text);
  const join = (inputs: string[]) => {
    const joined: string[] = [];
    for (const input of inputs) {
      const last = joined[joined.length - 1];
      if (input.startsWith("d:") && last?.startsWith("d:")) {
        joined[joined.length - 1] = last + input.slice(2);
      } else joined.push(input);
    }
    return joined;
  };
  for (let at = 0; at <= text.length; at++) {
    expect(join(parse(text.slice(0, at), text.slice(at)))).toEqual(join(whole));
  }
});
