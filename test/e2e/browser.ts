// Debian's headless Chromium, driven over the DevTools protocol: a page is opened, looked into and
// pictured, and everything is kept that it asked the network for or complained about.
// https://chromedevtools.github.io/devtools-protocol/

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { childrenOf, isAlive } from "./cluster-processes.ts";

/** chromium-headless-shell (tools/packages.txt) is the engine of chromium without its windows. */
const program = Bun.which("chromium-headless-shell");
export const hasBrowser: boolean = program !== null;

/** A slow machine's start. */
const START_MS = 60_000;
const PATIENCE_MS = 30_000;
/** It has nothing to save. */
const END_MS = 10_000;

interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly params?: unknown;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
  readonly sessionId?: string;
}

interface Waiting {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

/** "DevTools listening on ws://..." on its stderr. */
async function addressOf(stderr: ReadableStream<Uint8Array>): Promise<string> {
  const reader = stderr.getReader();
  const decoder = new TextDecoder();
  let text = "";
  const end = Date.now() + START_MS;
  while (Date.now() < end) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
    const found = /listening on (ws:\S+)/.exec(text)?.[1];
    if (found === undefined) continue;
    // Whatever it says later must not fill the pipe.
    void (async () => {
      while (!(await reader.read()).done);
    })();
    return found;
  }
  throw new Error(`the browser did not start:\n${text}`);
}

export class Browser implements AsyncDisposable {
  private readonly folder: string;
  private readonly child: Bun.Subprocess;
  private readonly socket: WebSocket;
  private readonly waiting = new Map<number, Waiting>();
  private readonly pages = new Map<string, Page>();
  private count = 0;

  private constructor(folder: string, child: Bun.Subprocess, socket: WebSocket) {
    this.folder = folder;
    this.child = child;
    this.socket = socket;
    socket.addEventListener("message", ({ data }) => this.take(JSON.parse(String(data))));
  }

  static async start(): Promise<Browser> {
    if (program === null) throw new Error("there is no chromium-headless-shell");
    const folder = mkdtempSync(join(tmpdir(), "ssihv-e2e-browser-"));
    const flags = [
      // Its own sandbox wants another user than root; what it shows here is ours.
      ...[
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        `--user-data-dir=${folder}`,
      ],
      ...["--no-first-run", "--disable-background-networking", "--hide-scrollbars"],
      "--disable-dev-shm-usage",
    ];
    const child = Bun.spawn([program, ...flags, "about:blank"], {
      env: { ...process.env, HOME: folder },
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    const socket = new WebSocket(await addressOf(child.stderr));
    const opened = Promise.withResolvers<void>();
    socket.addEventListener("open", () => opened.resolve());
    socket.addEventListener("error", () => opened.reject(new Error("no DevTools connection")));
    await opened.promise;
    return new Browser(folder, child, socket);
  }

  async page(): Promise<Page> {
    const { targetId } = (await this.send("Target.createTarget", { url: "about:blank" })) as {
      targetId: string;
    };
    const { sessionId } = (await this.send("Target.attachToTarget", {
      targetId,
      flatten: true,
    })) as { sessionId: string };
    const page = new Page((method, params) => this.send(method, params, sessionId));
    this.pages.set(sessionId, page);
    await page.enable();
    return page;
  }

  async send(method: string, params: object = {}, sessionId?: string): Promise<unknown> {
    this.count += 1;
    const answer = Promise.withResolvers<unknown>();
    this.waiting.set(this.count, answer);
    this.socket.send(JSON.stringify({ id: this.count, method, params, sessionId }));
    return await answer.promise;
  }

  /** Nothing of it is left: what was started is a script, whose end would not be the browser's. */
  async [Symbol.asyncDispose](): Promise<void> {
    const [browser] = childrenOf(this.child.pid);
    // It closes the connection instead of an answer.
    void this.send("Browser.close").catch(() => undefined);
    const timer = setTimeout(() => {
      if (browser !== undefined) process.kill(browser, "SIGKILL");
    }, END_MS);
    await this.child.exited;
    clearTimeout(timer);
    if (browser === undefined || isAlive(browser)) throw new Error("the browser goes on");
    this.socket.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private take(message: Message): void {
    if (message.id === undefined) {
      const page = this.pages.get(message.sessionId ?? "");
      page?.onEvent(message.method ?? "", message.params);
      return;
    }
    const waiting = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error !== undefined) waiting?.reject(new Error(message.error.message));
    else waiting?.resolve(message.result);
  }
}

type Send = (method: string, params?: object) => Promise<unknown>;

export class Page {
  /** Of every request, in order. */
  readonly requests: string[] = [];
  /** Errors and warnings, as the console has them, with what was refused by the page's policy. */
  readonly complaints: string[] = [];
  private readonly send: Send;

  constructor(send: Send) {
    this.send = send;
  }

  async enable(): Promise<void> {
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await this.send(`${domain}.enable`);
  }

  onEvent(method: string, params: unknown): void {
    const told = params as Record<string, never> & {
      request: { url: string };
      type: string;
      args: { value?: unknown; description?: string }[];
      exceptionDetails: { text: string; exception?: { description?: string } };
      entry: { level: string; text: string; url?: string };
    };
    if (method === "Network.requestWillBeSent") this.requests.push(told.request.url);
    if (method === "Runtime.exceptionThrown") {
      const { text, exception } = told.exceptionDetails;
      this.complaints.push(exception?.description ?? text);
    }
    if (method === "Runtime.consoleAPICalled" && ["error", "warning"].includes(told.type)) {
      this.complaints.push(
        told.args.map(({ value, description }) => value ?? description).join(" "),
      );
    }
    if (method === "Log.entryAdded" && ["error", "warning"].includes(told.entry.level)) {
      this.complaints.push(`${told.entry.text} ${told.entry.url ?? ""}`);
    }
  }

  /** Returns when the address is another document's; what it shows comes later. */
  async goto(url: string): Promise<void> {
    const { errorText } = (await this.send("Page.navigate", { url })) as { errorText?: string };
    if (errorText !== undefined) throw new Error(`${url}: ${errorText}`);
  }

  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.send("Runtime.evaluate", {
      ...{ expression, returnByValue: true, awaitPromise: true },
    })) as {
      result: { value: T };
      exceptionDetails?: { text: string; exception?: { description?: string } };
    };
    if (exceptionDetails === undefined) return result.value;
    throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
  }

  /** Until the expression is true. */
  async until(expression: string): Promise<void> {
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
      // A document that is being left answers no more.
      const holds = await this.evaluate<unknown>(expression).catch(() => false);
      if (holds === true) return;
      if (Date.now() > end) {
        const text = await this.evaluate<string>("document.body.innerText");
        throw new Error(`never true: ${expression}\nof a page that says:\n${text}`);
      }
      await Bun.sleep(100);
    }
  }

  /** Cells of the table in `#id`, row by row, the head left out. */
  rows(id: string): Promise<string[][]> {
    return this.evaluate(
      `[...document.querySelectorAll("#${id} tbody tr")].map(
        (row) => [...row.cells].map((cell) => cell.textContent))`,
    );
  }

  async look(size: { width: number; height: number }, scheme: "light" | "dark"): Promise<void> {
    await this.send("Emulation.setDeviceMetricsOverride", {
      ...{ ...size, deviceScaleFactor: 1, mobile: false },
    });
    await this.send("Emulation.setEmulatedMedia", {
      features: [{ name: "prefers-color-scheme", value: scheme }],
    });
  }

  /** As if its window were covered, or came to the front again. */
  async show(visible: boolean): Promise<void> {
    const state = visible ? "visible" : "hidden";
    const property = `{ value: "${state}", configurable: true }`;
    await this.evaluate(
      `Object.defineProperty(document, "visibilityState", ${property});
      document.dispatchEvent(new Event("visibilitychange"))`,
    );
  }

  /** The whole page, as far down as it goes. */
  async picture(path: string): Promise<void> {
    const { data } = (await this.send("Page.captureScreenshot", {
      ...{ format: "png", captureBeyondViewport: true },
    })) as { data: string };
    writeFileSync(path, Buffer.from(data, "base64"));
  }

  async press(key: string): Promise<void> {
    for (const type of ["keyDown", "keyUp"]) {
      await this.send("Input.dispatchKeyEvent", { type, key, code: key });
    }
  }
}
