// A network between two engines that the test can hold up or cut: connections to one Unix socket go
// on to another. Held up, bytes in both directions wait, and so do new connections' bytes, as if
// every packet were lost; cut, all connections are closed and new ones refused.

import { rmSync } from "node:fs";

interface Side {
  readonly queue: Uint8Array[];
  socket: Bun.Socket<Side> | undefined;
  other: Side;
  ended: boolean;
}

export class LaneProxy {
  private readonly path: string;
  private readonly target: string;
  private readonly sides = new Set<Side>();
  private listener: Bun.UnixSocketListener<Side> | undefined;
  private held = false;
  /** Connections so far. */
  connections = 0;

  constructor(path: string, target: string) {
    this.path = path;
    this.target = target;
    this.listen();
  }

  hold(): void {
    this.held = true;
  }

  release(): void {
    this.held = false;
    for (const side of [...this.sides]) this.flush(side);
  }

  cut(): void {
    this.listener?.stop(true);
    this.listener = undefined;
    rmSync(this.path, { force: true });
    for (const { socket } of [...this.sides]) socket?.terminate();
    this.sides.clear();
  }

  restore(): void {
    if (this.listener === undefined) this.listen();
  }

  close(): void {
    this.cut();
  }

  private listen(): void {
    this.listener = Bun.listen<Side>({ unix: this.path, socket: this.handlers() });
  }

  private pair(): [Side, Side] {
    const near = { queue: [], socket: undefined, ended: false } as unknown as Side;
    const far: Side = { queue: [], socket: undefined, ended: false, other: near };
    near.other = far;
    this.sides.add(near).add(far);
    this.connections += 1;
    return [near, far];
  }

  private handlers() {
    return {
      open: (socket: Bun.Socket<Side>) => {
        // Our own connection, to the target.
        if (socket.data !== undefined) return;
        const [near, far] = this.pair();
        socket.data = near;
        near.socket = socket;
        const connected = Bun.connect<Side>({
          unix: this.target,
          data: far,
          socket: this.handlers(),
        });
        connected.then(
          (outgoing) => {
            far.socket = outgoing;
            this.flush(far);
          },
          () => socket.terminate(),
        );
      },
      data: (socket: Bun.Socket<Side>, bytes: Uint8Array) => {
        socket.data.other.queue.push(bytes.slice());
        this.flush(socket.data.other);
      },
      drain: (socket: Bun.Socket<Side>) => this.flush(socket.data),
      close: (socket: Bun.Socket<Side>) => {
        if (socket.data === undefined) return;
        const { other } = socket.data;
        this.sides.delete(socket.data);
        other.ended = true;
        this.flush(other);
      },
      error: (socket: Bun.Socket<Side>) => {
        socket.terminate();
      },
    };
  }

  /** Gives a side what came for it, unless the network is held up. */
  private flush(side: Side): void {
    if (this.held || side.socket === undefined) return;
    for (let next = side.queue[0]; next !== undefined; next = side.queue[0]) {
      const taken = side.socket.write(next);
      if (taken < 0) return;
      if (taken < next.length) {
        side.queue[0] = next.subarray(taken);
        return;
      }
      side.queue.shift();
    }
    if (side.ended) side.socket.end();
  }
}
