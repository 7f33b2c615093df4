import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import type { Answer, EngineSummary, ToEngine } from "../engine/messages.ts";
import { Questions } from "./questions.ts";

const SUMMARY: Answer = { kind: "summary", summary: { node: 0 } as EngineSummary };

/** An engine that keeps what it is asked. */
class Mock {
  readonly ids: string[] = [];
  readonly alive: boolean;

  constructor(alive = true) {
    this.alive = alive;
  }

  send(message: ToEngine): boolean {
    if (message.type === "ask") this.ids.push(message.id);
    return this.alive;
  }
}

async function errorOf(promise: Promise<unknown>): Promise<SsihvError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof SsihvError) return error;
  throw new Error("no error of ours");
}

test("each answer goes to its question, in any order", async () => {
  const questions = new Questions("lead");
  const engine = new Mock();
  const first = questions.ask(engine, { kind: "summary" });
  const second = questions.ask(engine, { kind: "pages", gpa: 0, count: 1 });
  const [one = "", two = ""] = engine.ids;
  expect(
    questions.answered({ type: "answer", id: two, answer: { kind: "pages", pages: [] } }),
  ).toBe(true);
  questions.answered({ type: "answer", id: one, answer: SUMMARY });
  expect((await first).kind).toBe("summary");
  expect((await second).kind).toBe("pages");
  // Late and unknown ones are nobody's.
  expect(questions.answered({ type: "answer", id: one, answer: SUMMARY })).toBe(true);
});

test("two sides that ask one engine do not take each other's answers", async () => {
  const lead = new Questions("lead");
  const host = new Questions("host");
  const engine = new Mock();
  const asked = host.ask(engine, { kind: "summary" });
  const [id = ""] = engine.ids;
  expect(lead.answered({ type: "answer", id, answer: SUMMARY })).toBe(false);
  expect(host.answered({ type: "answer", id, answer: SUMMARY })).toBe(true);
  await asked;
});

test("a refusal keeps its code and hint; silence and death end a question", async () => {
  const questions = new Questions("lead", 20);
  const engine = new Mock();
  const asked = questions.ask(engine, { kind: "summary" });
  const answer: Answer = { kind: "refused", code: "memory_plain", message: "plain", hint: "so" };
  questions.answered({ type: "answer", id: engine.ids[0] ?? "", answer });
  const refused = await errorOf(asked);
  expect([refused.code, refused.message, refused.hint]).toEqual(["memory_plain", "plain", "so"]);
  const silent = await errorOf(questions.ask(new Mock(), { kind: "summary" }));
  expect(silent.message).toContain("did not answer within");
  const dead = await errorOf(questions.ask(new Mock(false), { kind: "summary" }));
  expect(dead.message).toContain("its engine is gone");
  expect(dead.code).toBe("vm_silent");
});
