import { expect, test } from "bun:test";

import { type CpuDump, formatCpuDump, formatLastWords, signalName } from "./last-words.ts";

function said(kind: number, text: string, vcpu = 0xffff_ffff): string | undefined {
  const bytes = new Uint8Array(2048);
  const length = new TextEncoder().encodeInto(text, bytes).written;
  return formatLastWords({
    cpuDump: () => ({ valid: 0 }) as CpuDump,
    lastWords: () => ({ kind, signo: 11, vcpu, text_len: length, address: 0x10n, text: bytes }),
  });
}

test("each kind of end has its words", () => {
  expect(said(0, "")).toBeUndefined();
  expect(said(1, "index out of bounds")).toBe("broken invariant: index out of bounds");
  expect(said(2, "", 3)).toBe("SIGSEGV at address 0x10 on vCPU 3");
  expect(said(3, "page_lost gfn 7", 0)).toBe("fatal condition on vCPU 0: page_lost gfn 7");
  expect(said(9, "?")).toContain("unknown kind 9");
});

test("a length beyond the record is not believed", () => {
  const text = new TextEncoder().encode("abc");
  const words = formatLastWords({
    cpuDump: () => ({ valid: 0 }) as CpuDump,
    lastWords: () => ({ kind: 1, signo: 0, vcpu: 0, text_len: 1 << 30, address: 0n, text }),
  });
  expect(words).toBe("broken invariant on vCPU 0: abc");
});

test("signals have names", () => {
  expect(signalName(11)).toBe("SIGSEGV");
  expect(signalName(99)).toBe("signal 99");
});

test("registers are shown in full, or not at all", () => {
  const names =
    "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags " +
    "cr0 cr2 cr3 cr4 efer cs_base";
  const values = names.split(" ").map((name, i) => [name, BigInt(i + 1)]);
  const dump = { valid: 1, vcpu: 2, cs_selector: 0x10, ...Object.fromEntries(values) } as CpuDump;
  const text = formatCpuDump(dump) ?? "";
  for (const name of names.split(" ").filter((each) => each !== "cs_base")) {
    expect(text).toMatch(new RegExp(`\\b${name} +[0-9a-f]{8}`));
  }
  expect(text).toStartWith("vCPU 2  rip 0000000000000011  cs 0010");
  expect(formatCpuDump({ ...dump, valid: 0 })).toBeUndefined();
});
