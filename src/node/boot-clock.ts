// When a Linux guest has booted, told from its console: the kernel's line before it runs init. The
// line is there unless the guest was told to be quiet; then the boot's time is unknown, not zero.
// Bounded: only the end of the last chunk is kept.

/** init/main.c run_init_process: "Run /init as init process". */
const INIT_LINE = /Run \/\S{1,200} as init process/;
const KEPT = 256;

export class BootClock {
  /** From the guest's start to init, once it was seen. */
  seconds: number | undefined;
  private tail = "";
  private startedAt: number | undefined;
  private readonly decoder = new TextDecoder("latin1");

  start(now: number): void {
    this.startedAt ??= now;
  }

  /** True for the chunk that completes the line. */
  push(chunk: Uint8Array, now: number): boolean {
    if (this.seconds !== undefined || this.startedAt === undefined) return false;
    const text = this.tail + this.decoder.decode(chunk);
    this.tail = text.slice(-KEPT);
    if (!INIT_LINE.test(text)) return false;
    this.seconds = (now - this.startedAt) / 1000;
    return true;
  }
}
