// What the dashboard's page consists of: files that are in the executable, and what a browser is
// told with them: nothing but these files and the API beside them is ever loaded, nobody frames
// the page, no string becomes markup.

const POLICY = [
  ...["default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'"],
  ...["connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"],
  ...["require-trusted-types-for 'script'", "trusted-types 'none'"],
].join("; ");

/** With every answer to a browser. */
export const BROWSER_HEADERS: Readonly<Record<string, string>> = {
  "content-security-policy": POLICY,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-store",
};

interface File {
  readonly type: string;
  readonly text: () => Promise<{ readonly default: unknown }>;
}

// Loaded when they are first asked for: no other command of the executable waits for them.
const FILES: Readonly<Record<string, File>> = {
  "/": {
    type: "text/html; charset=utf-8",
    text: () => import("./page.html", { with: { type: "text" } }),
  },
  "/dashboard.css": {
    type: "text/css; charset=utf-8",
    text: () => import("./page.css", { with: { type: "text" } }),
  },
  "/dashboard.js": {
    type: "text/javascript; charset=utf-8",
    text: () => import("../../build/dashboard.js.txt"),
  },
  "/favicon.svg": {
    type: "image/svg+xml",
    text: () => import("./icon.svg", { with: { type: "text" } }),
  },
};

/** Undefined: the path is none of the page's. */
export async function dashboardFile(path: string): Promise<Response | undefined> {
  if (!Object.hasOwn(FILES, path)) return undefined;
  const file = FILES[path];
  if (file === undefined) return undefined;
  const { default: text } = await file.text();
  return new Response(String(text), { headers: { ...BROWSER_HEADERS, "content-type": file.type } });
}
