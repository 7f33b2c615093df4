import { expect, test } from "bun:test";
import { SsihvError } from "../base/errors.ts";
import { SealedChannel } from "./sealed-channel.ts";

const KEY = new Uint8Array(32).fill(7);

function side(role: "lead" | "join", key = KEY) {
  const out: Uint8Array[] = [];
  const got: unknown[] = [];
  const channel = new SealedChannel(role, key, {
    write: (bytes) => out.push(bytes),
    onMessage: (message) => got.push(message),
  });
  const taken = () => Buffer.concat(out.splice(0));
  return { channel, got, taken };
}

/** Both directions, `chunk` bytes at a time, until nothing is left. */
function pump(a: ReturnType<typeof side>, b: ReturnType<typeof side>, chunk = 1 << 20) {
  for (;;) {
    const ab = a.taken();
    const ba = b.taken();
    if (ab.length + ba.length === 0) return;
    for (let i = 0; i < ab.length; i += chunk) b.channel.feed(ab.subarray(i, i + chunk));
    for (let i = 0; i < ba.length; i += chunk) a.channel.feed(ba.subarray(i, i + chunk));
  }
}

function code(run: () => void): string {
  try {
    run();
  } catch (error) {
    return error instanceof SsihvError ? error.code : String(error);
  }
  return "nothing thrown";
}

for (const chunk of [1, 7, 1 << 20]) {
  test(`messages cross both ways in order, ${chunk} bytes at a time`, () => {
    const lead = side("lead");
    const join = side("join");
    join.channel.send({ hello: 1 });
    lead.channel.send({ plan: [1, 2, 3] });
    pump(lead, join, chunk);
    lead.channel.send("second");
    pump(lead, join, chunk);
    expect(lead.got).toEqual([{ hello: 1 }]);
    expect(join.got).toEqual([{ plan: [1, 2, 3] }, "second"]);
  });
}

test("another key, another program and a changed byte are refused", () => {
  const lead = side("lead");
  const stranger = side("join", new Uint8Array(32).fill(8));
  stranger.channel.send({ hello: 1 });
  expect(code(() => pump(lead, stranger))).toBe("peer_refused");
  expect(code(() => side("lead").channel.feed(Buffer.from("GET / HTTP/1.1\r\n")))).toBe(
    "peer_refused",
  );
  const a = side("lead");
  const b = side("join");
  pump(a, b);
  b.channel.send({ hello: 1 });
  const frame = b.taken();
  frame[frame.length - 1] = (frame.at(-1) ?? 0) ^ 1;
  expect(code(() => a.channel.feed(frame))).toBe("peer_refused");
});

test("replayed, reflected and oversized frames are refused", () => {
  const a = side("lead");
  const b = side("join");
  pump(a, b);
  b.channel.send({ order: 1 });
  const frame = b.taken();
  a.channel.feed(frame);
  expect(code(() => a.channel.feed(frame))).toBe("peer_refused");
  expect(code(() => b.channel.feed(frame))).toBe("peer_refused");
  const c = side("lead");
  const d = side("join");
  pump(c, d);
  expect(code(() => c.channel.feed(Buffer.from([0xff, 0xff, 0xff, 0x7f])))).toBe("peer_refused");
});

test("the key and the messages are not on the wire", () => {
  const lead = side("lead");
  const join = side("join");
  join.channel.send({ secret: "open sesame" });
  const first = join.taken();
  lead.channel.feed(first);
  join.channel.feed(lead.taken());
  const second = join.taken();
  expect(Buffer.concat([first, second]).includes("sesame")).toBe(false);
  expect(Buffer.concat([first, second]).includes(Buffer.from(KEY))).toBe(false);
});
