// Who is asked of several coordinators, and what of it is asked again: plain HTTP servers stand in.

import { afterEach, expect, test } from "bun:test";
import { type ApiEndpoint, ApiEndpoints } from "./api-endpoints.ts";

const STANDS_BY = { error: { code: "leader_elsewhere", message: "this one stands by" } };

class Fake {
  leads: boolean;
  readonly asked: string[] = [];
  private readonly server: Bun.Server<undefined>;

  constructor(leads: boolean) {
    this.leads = leads;
    this.server = Bun.serve({
      ...{ hostname: "127.0.0.1", port: 0 },
      fetch: (request) => {
        const { pathname } = new URL(request.url);
        if (pathname !== "/v1/status") this.asked.push(`${request.method} ${pathname}`);
        if (!this.leads) return Response.json(STANDS_BY, { status: 503 });
        if (pathname !== "/silent") return Response.json({ by: this.endpoint.where });
        const error = { code: "vm_silent", message: "no engine answers" };
        return Response.json({ error }, { status: 503 });
      },
    });
  }

  get endpoint(): ApiEndpoint {
    const where = `127.0.0.1:${this.server.port}`;
    return { where, base: `http://${where}`, options: {} };
  }

  close(): void {
    void this.server.stop(true);
  }
}

const fakes: Fake[] = [];
afterEach(() => {
  for (const fake of fakes.splice(0)) fake.close();
});

function start(...leads: boolean[]): { fakes: Fake[]; endpoints: ApiEndpoints } {
  const started = leads.map((each) => new Fake(each));
  fakes.push(...started);
  const [first, ...others] = started.map(({ endpoint }) => endpoint);
  return { fakes: started, endpoints: new ApiEndpoints(first as ApiEndpoint, ...others) };
}

const GET = { method: "GET" };
const POST = { method: "POST" };

async function answerer(endpoints: ApiEndpoints): Promise<string> {
  return ((await (await endpoints.call("/x", GET)).json()) as { by: string }).by;
}

test("the one that leads is asked, and no other", async () => {
  const { endpoints, fakes } = start(false, true, false);
  expect(await answerer(endpoints)).toBe(fakes[1]?.endpoint.where ?? "");
  expect(fakes.map(({ asked }) => asked)).toEqual([[], ["GET /x"], []]);
});

test("what reads follows the lead, also away from one that ended", async () => {
  const { endpoints, fakes } = start(true, false);
  const [first, second] = fakes as [Fake, Fake];
  expect(await answerer(endpoints)).toBe(first.endpoint.where);
  [first.leads, second.leads] = [false, true];
  expect(await answerer(endpoints)).toBe(second.endpoint.where);
  [first.leads, second.leads] = [true, false];
  second.close();
  expect(await answerer(endpoints)).toBe(first.endpoint.where);
});

test("what changes something is not sent twice; the next request finds the lead", async () => {
  const { endpoints, fakes } = start(true, false);
  const [first, second] = fakes as [Fake, Fake];
  await endpoints.call("/x", POST);
  [first.leads, second.leads] = [false, true];
  await expect(endpoints.call("/x", POST)).rejects.toThrow("this one stands by");
  await endpoints.call("/y", POST);
  expect(second.asked).toEqual(["POST /y"]);
});

test("what the one that leads cannot have is told, and not asked for again", async () => {
  const { endpoints, fakes } = start(true, false);
  await expect(endpoints.call("/silent", GET)).rejects.toThrow("no engine answers");
  expect((await endpoints.ask("/silent", GET)).status).toBe(503);
  expect(fakes[0]?.asked).toEqual(["GET /silent", "GET /silent"]);
});

test("where none leads, that is thrown, and one that leads later is found", async () => {
  const { endpoints, fakes } = start(false, false);
  await expect(endpoints.find()).rejects.toThrow("this one stands by");
  await expect(endpoints.ask("/x", GET)).rejects.toThrow("this one stands by");
  (fakes[1] as Fake).leads = true;
  expect(await answerer(endpoints)).toBe(fakes[1]?.endpoint.where ?? "");
});

test("one alone is asked as it is, and its silence told with its address", async () => {
  const { endpoints, fakes } = start(false);
  expect((await endpoints.ask("/x", GET)).status).toBe(503);
  const [fake] = fakes as [Fake];
  const { where } = fake.endpoint;
  fake.close();
  await expect(endpoints.ask("/x", GET)).rejects.toThrow(
    `the coordinator at ${where} does not answer`,
  );
});
