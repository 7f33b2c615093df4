// A stand-in for `ssihv engine` in tests of its parent: speaks the control protocol and does what
// the kernel command line says, so that each test scripts its own engine. Never part of the
// product.
// Words: echo (console in to out), say=TEXT (_ is a space), summary, stop=REASON[:CODE], fail=CODE,
// segv, exit=N, hang, deaf (ignores stop), only=NODE (the rest of the line is for that node alone).

import { readSync, writeSync } from "node:fs";

import { type FromEngine, isToEngine, type StoppedReason } from "../engine/messages.ts";

function tell(message: FromEngine): void {
  process.send?.(message);
}

const SUMMARY = {
  node: 0,
  runSeconds: 1,
  exits: 1,
  exitsTypescript: 0,
  remoteFaults: 0,
  faultUsMedian: 0,
  faultUsP99: 0,
  pageTables: "strict",
  pageTableTransfers: 0,
  longestStallUs: 0,
  freezes: 0,
  frozenSeconds: 0,
  longestFreezeSeconds: 0,
  stalledShare: 0,
  mismatches: 0,
} as const;

let deaf = false;

/** Blocks until one chunk came, as a UART thread would. */
function echoOnce(): void {
  const chunk = new Uint8Array(4096);
  writeSync(1, chunk.subarray(0, readSync(0, chunk, 0, chunk.length, null)));
}

function act(word: string): void {
  const [verb = "", value = ""] = word.split(/=(.*)/s);
  switch (verb) {
    case "echo":
      echoOnce();
      return;
    case "say":
      writeSync(1, value.replaceAll("_", " "));
      return;
    case "summary":
      tell({ type: "summary", ...SUMMARY });
      return;
    case "err":
      writeSync(2, `${value}\n`);
      return;
    case "notice":
      tell({ type: "notice", text: value });
      return;
    case "stop": {
      const [reason, code] = value.split(":");
      const end = { type: "stopped", reason: reason as StoppedReason } as const;
      tell(code === undefined ? end : { ...end, code: Number(code) });
      setTimeout(() => process.exit(0), 20);
      return;
    }
    case "fail":
      tell({ type: "failed", code: value, message: "scripted failure", hint: "scripted hint" });
      return;
    case "segv":
      process.kill(process.pid, "SIGSEGV");
      return;
    case "exit":
      process.exit(Number(value));
      return;
    case "deaf":
      deaf = true;
      return;
    default:
      return;
  }
}

process.on("message", (message: unknown) => {
  if (!isToEngine(message)) return;
  if (message.type === "stop") {
    if (!deaf) process.exit(0);
  } else if (message.type === "start") {
    tell({ type: "started" });
    const { cmdline, node } = message.plan;
    let mine = true;
    for (const word of cmdline.split(" ")) {
      if (word.startsWith("only=")) mine = word === `only=${node}`;
      else if (word === "plan" && mine) writeSync(1, `${JSON.stringify(message.plan)}\n`);
      else if (mine) act(word);
    }
  } else {
    tell({ type: "notice", text: `got ${message.type}` });
  }
});
// The parent is gone: so are we.
process.on("disconnect", () => process.exit(0));

tell({
  type: "ready",
  capabilities: { pid: process.pid, abiHash: "0", tscKhz: 1, pageTables: "replicated" },
});
