// A guest reset over all nodes as a barrier: every vCPU parked and every request answered
// everywhere, then every page forgotten everywhere, then the images loaded again and all resumed.
// Node 0 leads; with one node the same steps run without messages. A memory node that is lost is
// not waited for. Pure: inputs are what happened, outputs go through the `Hands` given.

/** Operations of control messages between engines (abi EventKind.control, field b). */
export const CONTROL = { pause: 1, parked: 2, forget: 3, forgotten: 4, resume: 5 } as const;

export interface Hands {
  /** Ask this engine's vCPUs to park; parked() follows. */
  pause(): void;
  /** Let arrive what this node has under way; settled() follows. Not called with plain memory. */
  settlePages(): void;
  /** Forget all pages; pagesForgotten() follows. Not called with plain memory. */
  forgetPages(): void;
  /** A fresh KVM machine with devices at power-on. */
  resetMachine(): void;
  /** Images and the boot vCPU's state (node 0). */
  load(): void;
  resume(): void;
  /** To one node, or to all others. */
  send(to: number | "others", operation: number): void;
}

type Phase = "idle" | "parking" | "forgetting";

export class ResetBarrier {
  private phase: Phase = "idle";
  /** Nodes that are not through the present phase, and those that are lost for good. */
  private readonly missing = new Set<number>();
  private readonly gone = new Set<number>();
  private readonly node: number;
  private readonly nodes: number;
  private readonly paged: boolean;
  private readonly hands: Hands;

  constructor(shape: { node: number; nodes: number; paged: boolean }, hands: Hands) {
    this.node = shape.node;
    this.nodes = shape.nodes;
    this.paged = shape.paged;
    this.hands = hands;
  }

  get active(): boolean {
    return this.phase !== "idle";
  }

  /** Node 0: the guest asked for a reset. A second request during one changes nothing. */
  begin(): void {
    if (this.active) return;
    this.enter("parking");
    this.hands.send("others", CONTROL.pause);
    this.hands.pause();
  }

  /** This engine's vCPUs are parked. True if it was for a reset. */
  parked(): boolean {
    if (this.phase !== "parking") return false;
    // A parked vCPU may have left a fault whose page is still to come.
    if (this.paged) this.hands.settlePages();
    else this.settled();
    return true;
  }

  /** Nor is anything of this engine under way that others would miss. */
  settled(): void {
    if (this.phase !== "parking") return;
    if (this.node === 0) this.arrived(0);
    else this.hands.send(0, CONTROL.parked);
  }

  /** This engine has no pages any more. */
  pagesForgotten(): void {
    if (this.phase !== "forgetting") return;
    this.hands.resetMachine();
    if (this.node === 0) return this.arrived(0);
    this.hands.load();
    this.phase = "idle";
    this.hands.send(0, CONTROL.forgotten);
  }

  /** A control message of another engine, of node `from`. */
  control(from: number, operation: number): void {
    switch (operation) {
      case CONTROL.pause:
        this.phase = "parking";
        return this.hands.pause();
      case CONTROL.forget:
        this.phase = "forgetting";
        return this.hands.forgetPages();
      case CONTROL.resume:
        return this.hands.resume();
      case CONTROL.parked:
        if (this.phase === "parking") this.arrived(from);
        return;
      case CONTROL.forgotten:
        if (this.phase === "forgetting") this.arrived(from);
        return;
    }
  }

  /** A node is lost, and the VM goes on without it: now or at any time. */
  lost(node: number): void {
    this.gone.add(node);
    if (this.node === 0 && this.active) this.arrived(node);
  }

  private enter(phase: Phase): void {
    this.phase = phase;
    for (let node = 0; node < this.nodes; node++) if (!this.gone.has(node)) this.missing.add(node);
  }

  /** Node 0: a node is through the present phase. */
  private arrived(node: number): void {
    if (!this.missing.delete(node) || this.missing.size > 0) return;
    if (this.phase === "parking") {
      this.enter("forgetting");
      this.hands.send("others", CONTROL.forget);
      if (this.paged) this.hands.forgetPages();
      else this.pagesForgotten();
      return;
    }
    this.phase = "idle";
    this.hands.load();
    this.hands.send("others", CONTROL.resume);
    this.hands.resume();
  }
}
