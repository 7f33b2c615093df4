// Loads the Zig library. It is embedded in the executable; it reaches dlopen through a sealed
// memfd, so that hosts with a read-only or noexec temp folder work and no file is left behind.
// Where memfds may not be executed (vm.memfd_noexec=2) Bun's own extraction is the fallback. The
// library's ABI hash must equal the generated bindings': mixed builds are refused here.

import { dlopen, FFIType, ptr } from "bun:ffi";
import { readFileSync } from "node:fs";
import embedded from "../../build/libssihv.so" with { type: "file" };
import { errnoName, SsihvError } from "../base/errors.ts";
import { ABI_HASH, ABI_VERSION, functions, records } from "./abi.gen.ts";
import { decode } from "./record.ts";

const MFD_CLOEXEC = 1;

/** memfd with the library's bytes, as a path for dlopen; undefined where the kernel refuses. */
function memfdPath(): string | undefined {
  const libc = dlopen("libc.so.6", {
    memfd_create: { args: [FFIType.ptr, FFIType.u32], returns: FFIType.i32 },
    write: { args: [FFIType.i32, FFIType.ptr, FFIType.u64], returns: FFIType.i64 },
  });
  const name = new TextEncoder().encode("libssihv.so\0");
  const fd = libc.symbols.memfd_create(ptr(name), MFD_CLOEXEC);
  if (fd < 0) return undefined;
  const bytes = new Uint8Array(readFileSync(embedded));
  let done = 0;
  while (done < bytes.length) {
    const rest = bytes.subarray(done);
    const n = Number(libc.symbols.write(fd, ptr(rest), BigInt(rest.length)));
    if (n <= 0) return undefined;
    done += n;
  }
  return `/proc/self/fd/${fd}`;
}

function open() {
  const path = memfdPath();
  const attempts = path === undefined ? [embedded] : [path, embedded];
  let cause: unknown;
  for (const attempt of attempts) {
    try {
      return dlopen(attempt, functions);
    } catch (error) {
      cause = error;
    }
  }
  throw new SsihvError("library_unloadable", "the data-plane library could not be loaded", {
    hint: "needs /proc, glibc 2.28 or newer, and memfds or a temp folder that may be executed",
    cause,
  });
}

export type Library = ReturnType<typeof open>["symbols"];
let loaded: Library | undefined;

/** The library's functions; loaded and checked on first use. */
export function library(): Library {
  if (loaded !== undefined) return loaded;
  const { symbols } = open();
  const info = new Uint8Array(records.AbiInfo.size);
  symbols.ssihv_abi_info(ptr(info));
  const { version, hash } = decode(records.AbiInfo, info);
  if (version !== ABI_VERSION || hash !== ABI_HASH) {
    const found = `${version}/${hash.toString(16)}`;
    throw new SsihvError(
      "abi_mismatched",
      `library has ABI ${found}, bindings ${ABI_VERSION}/${ABI_HASH.toString(16)}`,
      { hint: "build both from one checkout: make clean && make" },
    );
  }
  loaded = symbols;
  return symbols;
}

/** What a failed call means to whoever asked for it, by errno. */
export type Reasons = Readonly<Record<number, string>>;

/**
 * Throws what the library says about its newest failure unless `status` is ok: with a reason for
 * the errno of a failed system call, else with its name.
 */
export function checked(
  status: number,
  code: SsihvError["code"] = "engine_failed",
  reasons: Reasons = {},
): void {
  if (status === 0) return;
  const bytes = new Uint8Array(records.ErrorRecord.size);
  library().ssihv_error_last(ptr(bytes));
  const { errno, text, text_len } = decode(records.ErrorRecord, bytes);
  const words = new TextDecoder().decode(text.subarray(0, text_len));
  if (errno === 0) throw new SsihvError(code, words);
  const reason = reasons[errno];
  throw new SsihvError(
    code,
    `${words}${reason === undefined ? "" : `: ${reason}`} (${errnoName(errno)})`,
  );
}
