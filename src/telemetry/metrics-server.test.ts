import { expect, test } from "bun:test";
import { MetricsServer } from "./metrics-server.ts";

test("served at /metrics, and nothing else", async () => {
  const server = MetricsServer.open(
    { host: "127.0.0.1", port: 0 },
    async () => "ssihv_node_up 1\n",
  );
  try {
    const at = `http://127.0.0.1:${server.port}`;
    const good = await fetch(`${at}/metrics`);
    expect(good.status).toBe(200);
    expect(good.headers.get("content-type")).toStartWith("text/plain; version=0.0.4");
    expect(await good.text()).toContain("ssihv_node_up");
    expect((await fetch(`${at}/`)).status).toBe(200);
    expect((await fetch(`${at}/secret`)).status).toBe(404);
    expect((await fetch(`${at}/metrics`, { method: "POST" })).status).toBe(405);
    expect(() =>
      MetricsServer.open({ host: "127.0.0.1", port: server.port }, async () => ""),
    ).toThrow(/cannot be used/);
  } finally {
    server.close();
  }
});
