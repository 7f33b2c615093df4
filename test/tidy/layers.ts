// Who may import whom: the table of ARCHITECTURE.md as data, and the import lists of our sources.
// A file belongs to the layer with the longest matching prefix; test files may import more (their
// fixtures and helpers), so only what ships is checked. Packages are part of a layer's list too:
// "node:*" is missing from the pure ones on purpose.

export interface Layer {
  /** Folder or file, from the checkout's root. */
  readonly at: string;
  /** Other layers (by `at`), packages, or "node:*". A layer may always import itself. */
  readonly mayImport: readonly string[];
}

const zigParts = ["zig/kvm", "zig/irq", "zig/memory", "zig/transport", "zig/devices"];
const zigBoundary = ["zig/abi.zig", "zig/abi_hash.zig"];

export const zigLayers: readonly Layer[] = [
  { at: "zig/abi.zig", mayImport: ["std"] },
  { at: "zig/abi_hash.zig", mayImport: ["std", "root", "zig/abi.zig", "zig/exports.zig"] },
  { at: "zig/base", mayImport: ["std", "builtin", "zig/abi.zig"] },
  // The step function is pure: no I/O, clock, threads or allocation, so not even zig/abi.zig.
  { at: "zig/dsm", mayImport: ["std", "zig/base"] },
  ...zigParts.map((at) => ({ at, mayImport: ["std", "builtin", "zig/base", "zig/abi.zig"] })),
  {
    at: "zig/engine",
    // The lanes' handshake names the build, hence abi_hash.zig.
    mayImport: ["std", "builtin", "zig/base", "zig/dsm", "zig/engine.zig"].concat(
      zigBoundary,
      zigParts,
    ),
  },
  {
    // The production shell and core in a simulated environment; "root" says where panics go.
    at: "zig/sim",
    mayImport: ["std", "builtin", "root", "zig/base", "zig/dsm", "zig/engine", "zig/memory"].concat(
      ["zig/transport", "zig/abi.zig"],
    ),
  },
  {
    at: "zig/engine.zig",
    mayImport: ["std", "builtin", "zig/base", "zig/dsm", "zig/engine", "zig/abi.zig"].concat(
      zigParts,
    ),
  },
  {
    at: "zig/exports.zig",
    mayImport: ["std", "builtin", "zig/base", "zig/kvm", "zig/engine.zig", "zig/engine"].concat(
      zigBoundary,
    ),
  },
  { at: "zig/gen_abi.zig", mayImport: ["std", "zig/exports.zig", ...zigBoundary] },
  { at: "zig/tests_explorer.zig", mayImport: ["zig/dsm"] },
  { at: "zig/tests_memory.zig", mayImport: ["zig/engine"] },
  { at: "zig/tests_kvm.zig", mayImport: ["zig/engine"] },
  { at: "zig/explore.zig", mayImport: ["std", "zig/dsm"] },
  { at: "zig/tests_sim.zig", mayImport: ["zig/sim"] },
  { at: "zig/simulate.zig", mayImport: ["std", "zig/base", "zig/sim"] },
  { at: "zig/tests_lanes.zig", mayImport: ["zig/transport"] },
  { at: "zig/test_runner.zig", mayImport: ["std", "builtin"] },
  { at: "zig/tsc_rate.zig", mayImport: ["std", "zig/base", "zig/engine"] },
  { at: "zig/bench_lane.zig", mayImport: ["std", "zig/base", "zig/transport"] },
  { at: "zig/bench_fault.zig", mayImport: ["std", "zig/base", "zig/transport", "zig/engine"] },
];

const belowEngine = ["src/base", "src/native", "src/vmm", "src/policy", "src/config", "acpi"];

export const typescriptLayers: readonly Layer[] = [
  { at: "src/base", mayImport: ["node:*"] },
  {
    at: "src/tls",
    mayImport: ["src/base", "node:*", "@peculiar/x509", "reflect-metadata"],
  },
  { at: "src/service", mayImport: ["src/base", "node:*"] },
  // What coordinator and agents say to each other.
  { at: "src/control", mayImport: ["src/base", "src/tls", "node:*", "@sinclair/typebox"] },
  { at: "acpi", mayImport: ["src/base"] },
  { at: "src/config", mayImport: ["src/base", "node:*", "yaml", "@sinclair/typebox"] },
  { at: "src/native", mayImport: ["src/base", "build", "bun:ffi", "node:*"] },
  { at: "src/vmm", mayImport: ["src/base", "src/config", "acpi"] },
  { at: "src/policy", mayImport: ["src/base", "src/config"] },
  { at: "src/telemetry", mayImport: ["src/base", "src/config", "node:*"] },
  { at: "src/engine", mayImport: [...belowEngine, "src/telemetry", "node:*"] },
  {
    at: "src/node",
    mayImport: [...belowEngine, "src/telemetry", "src/engine", "node:*", "package.json"],
  },
  // A VM over hosts that a command reaches by ssh, or as Slurm's nodes.
  {
    at: "src/hosts",
    mayImport: ["src/base", "src/native", "src/vmm", "src/engine", "src/node", "node:*"],
  },
  {
    at: "coordinator",
    mayImport: ["src/base", "src/config", "src/control", "src/tls", "src/vmm", "node:*"].concat([
      "src/telemetry",
      "build",
      "bun:sqlite",
      "@sinclair/typebox",
      "elysia",
      "@elysiajs/openapi",
    ]),
  },
  // What the dashboard's page and its tests share: pure.
  ...["drawing", "format", "history", "histogram-view"].map((name) => ({
    at: `coordinator/dashboard/${name}.ts`,
    mayImport: ["coordinator/dashboard", "src/telemetry"],
  })),
  {
    // Runs in browsers: of everything else only the types, and what is pure.
    at: "coordinator/dashboard/browser",
    mayImport: ["coordinator", "src/control", "src/telemetry"],
  },
  {
    at: "src/agent",
    mayImport: ["src/base", "src/control", "src/tls", "src/node", "node:*", "bun:sqlite"].concat(
      "@sinclair/typebox",
    ),
  },
  {
    at: "src/cli",
    mayImport: ["src/base", "src/config", "src/control", "src/node", "src/tls", "acpi"].concat([
      "coordinator",
      "src/agent",
      "src/service",
      "src/hosts",
      "src/telemetry",
      "node:*",
      "@stricli/core",
    ]),
  },
  {
    at: "src/main.ts",
    mayImport: ["src/base", "src/cli", "src/node", "src/engine", "coordinator", "node:*"].concat(
      "@stricli/core",
    ),
  },
];

/** `import`, `export ... from` and `import()` of a TypeScript file. */
export function typescriptImports(text: string): string[] {
  const code = text.replace(/^\s*\/\/.*$/gm, "").replace(/\/\*[\s\S]*?\*\//g, "");
  const pattern = /(?:\bfrom\s+|\bimport\s+|\bimport\(\s*)"([^"]+)"/g;
  return [...code.matchAll(pattern)].map(([, name = ""]) => name);
}

/** `@import("...")` of a Zig file. */
export function zigImports(text: string): string[] {
  const code = text.replace(/\/\/.*$/gm, "");
  return [...code.matchAll(/@import\("([^"]+)"\)/g)].map(([, name = ""]) => name);
}

/** An import as a path from the root, or the package's name. */
export function resolveImport(file: string, name: string): string {
  if (!name.startsWith(".") && !name.endsWith(".zig")) {
    return name.startsWith("node:") ? "node:*" : name;
  }
  const parts = file.split("/").slice(0, -1);
  for (const part of name.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== ".") parts.push(part);
  }
  return parts.join("/");
}

function isIn(path: string, at: string): boolean {
  return path === at || path.startsWith(`${at}/`);
}

export function layerOf(layers: readonly Layer[], path: string): Layer | undefined {
  return layers
    .filter(({ at }) => isIn(path, at))
    .sort((a, b) => b.at.length - a.at.length)
    .at(0);
}

/** What `file` imports and may not, as sentences. */
export function violations(
  layers: readonly Layer[],
  file: string,
  imports: readonly string[],
): string[] {
  const layer = layerOf(layers, file);
  if (layer === undefined) return [`${file} is in no layer: add it to test/tidy/layers.ts`];
  return imports.flatMap((name) => {
    const target = resolveImport(file, name);
    const allowed = [layer.at, ...layer.mayImport].some((at) => isIn(target, at));
    return allowed ? [] : [`${file} imports ${target}: ${layer.at} may not`];
  });
}
