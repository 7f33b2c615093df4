// A stand-in for `ssihv engine` in tests of its parent: speaks the control protocol and does what
// the kernel command line says, so that each test scripts its own engine. Never part of the
// product.
// Words: echo (console in to out, once), repeat (the same for ever), say=TEXT (_ is a space),
// summary, stop=REASON[:CODE], fail=CODE, segv, exit=N, hang, deaf (ignores stop), mute (answers no
// question), dies=MESSAGE (exits with 9 when it comes), on=MESSAGE:WORD (does it when it comes),
// unstarted (never says that it started), only=NODE (the rest of the line is for that node alone).

import { readSync, writeSync } from "node:fs";

import {
  type FromEngine,
  isToEngine,
  type PageReport,
  type Question,
  type StoppedReason,
} from "../engine/messages.ts";

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
  oldest_fault_us: 0,
  freezes: 0,
  frozenSeconds: 0,
  longestFreezeSeconds: 0,
  stalledShare: 0,
  mismatches: 0,
  memory: {
    ownPagesMax: 0,
    cachePagesMax: 0,
    evicted: 0,
    returned: 0,
    framesHeld: 0,
    discarded: 0,
    framesFreed: 0,
  },
} as const;

let deaf = false;
let mute = false;
let deadly = "";
let awaited = "";
let then = "";
let own = 0;

/** Every page is home at node 0, which says so; node 1 has it and asks for more. */
function pagesFrom(gpa: number, count: number): PageReport[] {
  return Array.from({ length: count }, (_, i) => ({
    gpa: gpa + i * 4096,
    home: 0,
    ...(own === 0 && {
      entry: {
        state: "shared" as const,
        owner: 1,
        sharers: [0, 1],
        version: 7,
        transaction: {
          requester: 1,
          request: "upgrade" as const,
          phase: "strict" as const,
          queued: 0,
        },
      },
    }),
    copy: {
      access: "shared" as const,
      version: 7,
      ...(own === 1 && { waitsFor: "upgrade" as const }),
      revokesDeferred: own === 0 ? 1 : 0,
    },
  }));
}

function answer(id: string, question: Question): void {
  if (mute) return;
  if (question.kind === "summary") {
    const summary = { ...SUMMARY, node: own, oldest_fault_us: 1234 };
    return tell({ type: "answer", id, answer: { kind: "summary", summary } });
  }
  if (question.kind === "stats") {
    const faultLatency = { count: 1, sum_ns: 3000, buckets: [0, 1] };
    const stats = { node: own, engine: { faults_read: 5 }, vcpus: [{ exits: 9 }], faultLatency };
    return tell({ type: "answer", id, answer: { kind: "stats", stats } });
  }
  if (question.kind === "heat") {
    const heat = { blockBytes: 2 ** 21, faults: [0, own + 1] };
    return tell({ type: "answer", id, answer: { kind: "heat", heat } });
  }
  if (question.kind === "balloon") {
    const balloon = { target: question.bytes, actual: 0, inflated: 0, reported: 0 };
    return tell({ type: "answer", id, answer: { kind: "balloon", balloon } });
  }
  const pages = pagesFrom(question.gpa, question.count);
  tell({ type: "answer", id, answer: { kind: "pages", pages } });
}

process.on("SIGUSR1", () => writeSync(2, `node ${own}: nothing is open\n`));

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
    case "repeat":
      process.stdin.on("data", (chunk: Uint8Array) => void writeSync(1, chunk));
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
    case "mute":
      mute = true;
      return;
    case "dies":
      deadly = value;
      return;
    case "on":
      [awaited = "", then = ""] = value.split(/:(.*)/s);
      return;
    default:
      return;
  }
}

process.on("message", (message: unknown) => {
  if (!isToEngine(message)) return;
  if (message.type === deadly) process.exit(9);
  if (message.type === awaited) act(then);
  if (message.type === "stop") {
    if (!deaf) process.exit(0);
  } else if (message.type === "leave") {
    tell({ type: "stopped", reason: "requested" });
    setTimeout(() => process.exit(0), 20);
  } else if (message.type === "peer_ended") {
    tell({ type: "notice", text: `node ${message.node} has ended` });
  } else if (message.type === "ask") {
    answer(message.id, message.question);
  } else if (message.type === "start") {
    const { cmdline, node } = message.plan;
    own = node;
    let mine = true;
    const words = cmdline.split(" ").filter((word) => {
      if (word.startsWith("only=")) mine = word === `only=${node}`;
      return mine && !word.startsWith("only=");
    });
    if (!words.includes("unstarted")) tell({ type: "started" });
    for (const word of words) {
      if (word === "plan") writeSync(1, `${JSON.stringify(message.plan)}\n`);
      else act(word);
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
