// Splits what is typed at a raw terminal into bytes for the guest and commands for ssihv.
// A byte-level state machine: the escape key (Ctrl-A, as QEMU and picocom use it) arms it, the next
// byte decides. State survives chunk borders, so a key split over two reads works.

/** Ctrl-A. */
export const ESCAPE_BYTE = 0x01;

export type ConsoleCommand = "quit" | "help" | "pause" | "nmi" | "report" | "unknown";

export type ConsoleInput =
  | { readonly kind: "data"; readonly bytes: Uint8Array }
  | { readonly kind: "command"; readonly command: ConsoleCommand };

const KEYS: Record<string, ConsoleCommand> = {
  x: "quit",
  h: "help",
  "?": "help",
  p: "pause",
  n: "nmi",
  r: "report",
};

export const CONSOLE_HELP = [
  "Ctrl-A X       stop the VM and quit",
  "Ctrl-A P       pause the VM, or let it go on",
  "Ctrl-A N       send an NMI to the boot CPU",
  "Ctrl-A R       show the numbers of the run so far",
  "Ctrl-A Ctrl-A  send Ctrl-A to the guest",
  "Ctrl-A H       this help",
].join("\n");

function commandOf(byte: number): ConsoleCommand {
  return KEYS[String.fromCharCode(byte).toLowerCase()] ?? "unknown";
}

export class EscapeParser {
  private armed = false;

  /** Inputs in the order they were typed; data bytes are views of or copies from `chunk`. */
  push(chunk: Uint8Array): ConsoleInput[] {
    const inputs: ConsoleInput[] = [];
    let start = 0;
    const flush = (end: number) => {
      if (end > start) inputs.push({ kind: "data", bytes: chunk.subarray(start, end) });
    };
    for (let i = 0; i < chunk.length; i++) {
      const byte = chunk[i] ?? 0;
      if (this.armed) {
        this.armed = false;
        if (byte === ESCAPE_BYTE) {
          // The second Ctrl-A itself is the data: leave it in the run that starts here.
          start = i;
          continue;
        }
        start = i + 1;
        inputs.push({ kind: "command", command: commandOf(byte) });
      } else if (byte === ESCAPE_BYTE) {
        flush(i);
        start = i + 1;
        this.armed = true;
      }
    }
    if (!this.armed) flush(chunk.length);
    return inputs;
  }
}
