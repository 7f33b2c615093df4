// Measures small-message round trips between two lab hosts over TCP: what the lanes of SSI-HV will
// see. Host 1 answers, host 2 asks. The second pattern writes a request in two pieces without
// TCP_NODELAY, the case where a delayed acknowledgement would cost 40 ms.
// Usage on a host: bun round-trips.ts serve | ask ADDRESS; `ask` prints one JSON line.

const port = 7000;
const messageBytes = 64;
// The first rounds run cold code (here and in an emulated CPU's translator) and are not counted.
const warmUp = 200;
const rounds = 300;

export interface RoundTrips {
  pattern: "one write" | "two writes";
  rounds: number;
  p50Us: number;
  p99Us: number;
  maxUs: number;
}

function serve(): void {
  const pending = new WeakMap<object, number>();
  Bun.listen({
    hostname: "0.0.0.0",
    port,
    socket: {
      data(socket, bytes) {
        let total = (pending.get(socket) ?? 0) + bytes.length;
        for (; total >= messageBytes; total -= messageBytes)
          socket.write(new Uint8Array(messageBytes));
        pending.set(socket, total);
      },
    },
  });
}

async function ask(address: string, pattern: RoundTrips["pattern"]): Promise<RoundTrips> {
  const samples: number[] = [];
  const done = Promise.withResolvers<void>();
  let received = 0;
  let began = 0;
  const send = (socket: Bun.Socket) => {
    began = performance.now();
    if (pattern === "one write") {
      socket.write(new Uint8Array(messageBytes));
      return;
    }
    socket.write(new Uint8Array(messageBytes / 2));
    socket.write(new Uint8Array(messageBytes / 2));
  };
  const socket = await Bun.connect({
    hostname: address,
    port,
    socket: {
      open(own) {
        own.setNoDelay(pattern === "one write");
        send(own);
      },
      data(own, bytes) {
        received += bytes.length;
        if (received < messageBytes) return;
        received -= messageBytes;
        samples.push((performance.now() - began) * 1000);
        if (samples.length === warmUp + rounds) done.resolve();
        else send(own);
      },
      error: (_own, error) => done.reject(error),
      close: () => done.reject(new Error("the answering host closed the connection")),
    },
  });
  await done.promise;
  socket.end();
  samples.splice(0, warmUp);
  samples.sort((a, b) => a - b);
  const at = (share: number) => Math.round(samples[Math.floor((samples.length - 1) * share)] ?? 0);
  return { pattern, rounds, p50Us: at(0.5), p99Us: at(0.99), maxUs: at(1) };
}

if (import.meta.main) {
  const [role, address] = process.argv.slice(2);
  if (role === "serve") serve();
  else if (role === "ask" && address !== undefined) {
    console.log(
      JSON.stringify([await ask(address, "one write"), await ask(address, "two writes")]),
    );
    process.exit(0);
  } else throw new Error("usage: bun round-trips.ts serve | ask ADDRESS");
}
