// What a dead or stopped engine left behind in its shared page, in words. Pure: records in, text
// out. The page outlives the engine because the parent made it, so this works after SIGKILL too.

import { constants as os } from "node:os";

import type { SharedPage } from "../native/shared-page.ts";

/** The part of the shared page a post-mortem reads. */
export type PostMortemPage = Pick<SharedPage, "lastWords" | "cpuDump">;
export type CpuDump = ReturnType<PostMortemPage["cpuDump"]>;

/** abi.zig LastWordsKind. */
const KIND = { none: 0, panic: 1, signal: 2, fatal: 3 } as const;
/** abi.zig LastWords.vcpu where no vCPU thread died. */
const NO_VCPU = 0xffff_ffff;

export function signalName(signo: number): string {
  for (const [name, value] of Object.entries(os.signals)) if (value === signo) return name;
  return `signal ${signo}`;
}

function hex(value: bigint, digits = 16): string {
  return value.toString(16).padStart(digits, "0");
}

/** One line, or undefined when the engine died without a word (SIGKILL, out of memory). */
export function formatLastWords(page: PostMortemPage): string | undefined {
  const words = page.lastWords();
  if (words.kind === KIND.none) return undefined;
  const length = Math.min(words.text_len, words.text.length);
  const text = new TextDecoder().decode(words.text.subarray(0, length)).trim();
  const where = words.vcpu === NO_VCPU ? "" : ` on vCPU ${words.vcpu}`;
  const said = text === "" ? "" : `: ${text}`;
  switch (words.kind) {
    case KIND.panic:
      return `broken invariant${where}${said}`;
    case KIND.signal:
      return `${signalName(words.signo)} at address 0x${words.address.toString(16)}${where}${said}`;
    case KIND.fatal:
      return `fatal condition${where}${said}`;
    default:
      return `last words of unknown kind ${words.kind}${where}${said}`;
  }
}

/** Registers of the vCPU that stopped; undefined when none was recorded. */
export function formatCpuDump(dump: CpuDump): string | undefined {
  if (dump.valid === 0) return undefined;
  const row = (...names: (keyof CpuDump & string)[]) =>
    names.map((name) => `${name.padStart(4)} ${hex(BigInt(dump[name]))}`).join("  ");
  return [
    `vCPU ${dump.vcpu}  rip ${hex(dump.rip)}  cs ${hex(BigInt(dump.cs_selector), 4)}` +
      ` base ${hex(dump.cs_base)}  rflags ${hex(dump.rflags, 8)}`,
    row("rax", "rbx", "rcx", "rdx"),
    row("rsi", "rdi", "rsp", "rbp"),
    row("r8", "r9", "r10", "r11"),
    row("r12", "r13", "r14", "r15"),
    row("cr0", "cr2", "cr3", "cr4"),
    row("efer"),
  ].join("\n");
}
