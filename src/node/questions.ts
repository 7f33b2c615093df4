// Questions to engines, here or on other hosts, and the answers that come back as messages. Several
// sides may ask one engine (the lead of a VM, and the command on the engine's own host), so every
// id begins with the asker's name and each takes only its own answers.
// Invariant: every question ends, by its answer or after the limit.

import { isErrorCode, SsihvError } from "../base/errors.ts";
import type { Answer, FromEngine, Question } from "../engine/messages.ts";
import type { Engine } from "./engine-process.ts";

/** An engine gives a silent shard 1.5 s; the rest is for the way. */
const LIMIT_MS = 2500;

export type Asked = Exclude<Answer, { kind: "refused" }>;
type Answered = Extract<FromEngine, { type: "answer" }>;

export class Questions {
  private readonly asker: string;
  private readonly limitMs: number;
  private readonly open = new Map<string, (answer: Answer) => void>();
  private count = 0;

  constructor(asker: string, limitMs = LIMIT_MS) {
    this.asker = asker;
    this.limitMs = limitMs;
  }

  /** Throws what the engine refused with, or `vm_silent`. */
  async ask(engine: Pick<Engine, "send">, question: Question): Promise<Asked> {
    this.count++;
    const id = `${this.asker}-${this.count}`;
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    const seconds = (this.limitMs / 1000).toFixed(1);
    const timer = setTimeout(
      () => reject(silent(`its engine did not answer within ${seconds} s`)),
      this.limitMs,
    );
    this.open.set(id, resolve);
    try {
      if (!engine.send({ type: "ask", id, question })) throw silent("its engine is gone");
      const answer = await promise;
      if (answer.kind !== "refused") return answer;
      const { code, message, hint } = answer;
      throw new SsihvError(isErrorCode(code) ? code : "engine_failed", message, {
        ...(hint !== undefined && { hint }),
      });
    } finally {
      clearTimeout(timer);
      this.open.delete(id);
    }
  }

  /** False: another side asked. */
  answered({ id, answer }: Answered): boolean {
    if (!id.startsWith(`${this.asker}-`)) return false;
    this.open.get(id)?.(answer);
    return true;
  }
}

function silent(message: string): SsihvError {
  return new SsihvError("vm_silent", message, {
    hint: "kill -USR1 the command that runs the VM: its engines tell what is open",
  });
}
