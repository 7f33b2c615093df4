import { expect, test } from "bun:test";
import { otherOrigin } from "./same-origin.ts";

function asked(headers: Record<string, string>, method = "GET"): string | undefined {
  return otherOrigin(new Request("http://c:7780/v1/vms", { method, headers }));
}

test("programs, and a page of our own, may ask", () => {
  expect(asked({})).toBeUndefined();
  expect(asked({}, "POST")).toBeUndefined();
  expect(asked({ host: "c:7780", origin: "https://c:7780" }, "POST")).toBeUndefined();
  expect(asked({ "sec-fetch-site": "same-origin" })).toBeUndefined();
  // Typed, or a bookmark.
  expect(asked({ "sec-fetch-site": "none" })).toBeUndefined();
});

test("other sites may not, whatever their request looks like", () => {
  const host = "c:7780";
  for (const origin of ["https://evil.example", "https://c:7781", "http://c", "null", "nonsense"]) {
    expect(asked({ host, origin }, "POST")).toContain("asked for it");
  }
  // Another port of the same host is the same site, and another origin.
  for (const site of ["cross-site", "same-site"]) {
    expect(asked({ host, "sec-fetch-site": site })).toBeDefined();
    const form = { "sec-fetch-site": site, "sec-fetch-mode": "navigate" };
    expect(asked({ host, ...form, "sec-fetch-dest": "document" }, "POST")).toBeDefined();
    expect(asked({ host, ...form, "sec-fetch-dest": "iframe" })).toBeDefined();
  }
});

test("a link on another site leads here, in a window of its own", () => {
  const link = { "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate" };
  expect(asked({ ...link, "sec-fetch-dest": "document" })).toBeUndefined();
});
