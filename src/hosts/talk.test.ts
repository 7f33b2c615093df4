import { expect, test } from "bun:test";

import { Lines } from "./part-messages.ts";
import { Talk } from "./talk.ts";

type Word = { type: "alive" } | { type: "word"; text: string };

function talk(limits = {}) {
  const written: string[] = [];
  const heard: Word[] = [];
  const ended = Promise.withResolvers<string>();
  const it = new Talk<Word, Word>(
    (line) => written.push(line),
    { onMessage: (message) => heard.push(message), onEnd: ended.resolve },
    limits,
  );
  return { it, written, heard, ended: ended.promise };
}

test("a side that says nothing is given up, one that lives is not", async () => {
  const silent = talk({ aliveMs: 5, silenceMs: 60 });
  const lively = talk({ aliveMs: 5, silenceMs: 60 });
  const timer = setInterval(() => lively.it.line('{"type":"alive"}'), 5);
  expect(await silent.ended).toMatch(/^nothing was heard for/);
  const first = await Promise.race([lively.ended, Bun.sleep(100).then(() => "lives")]);
  clearInterval(timer);
  lively.it.close();
  expect(first).toBe("lives");
  expect(silent.written).toContain('{"type":"alive"}\n');
  expect(lively.heard).toEqual([]);
});

test("what is no message ends it, once", async () => {
  const { it, heard, ended } = talk();
  it.line('{"type":"word","text":"on"}');
  it.line("rubbish");
  it.line('{"type":"word","text":"late"}');
  expect(await ended).toContain("rubbish");
  expect(heard).toEqual([{ type: "word", text: "on" }]);
});

test("lines in any pieces, and the rest", () => {
  const lines = new Lines();
  const bytes = new TextEncoder().encode("one\ntwö\n\nrest");
  const got = [...bytes].flatMap((byte) => lines.push(new Uint8Array([byte])));
  expect(got).toEqual(["one", "twö", ""]);
  expect(lines.rest()).toBe("rest");
});
