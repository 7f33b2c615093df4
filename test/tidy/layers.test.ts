import { describe, expect, test } from "bun:test";
import {
  resolveImport,
  typescriptImports,
  typescriptLayers,
  violations,
  zigImports,
  zigLayers,
} from "./layers.ts";
import { isTest, sources } from "./sources.ts";

describe("imports follow the layers", () => {
  test("TypeScript", () => {
    const files = sources(/^(src|acpi|coordinator)\/.*\.ts$/).filter(({ path }) => !isTest(path));
    expect(files.length).toBeGreaterThan(20);
    const found = files.flatMap(({ path, text }) =>
      violations(typescriptLayers, path, typescriptImports(text)),
    );
    expect(found).toEqual([]);
  });

  test("Zig", () => {
    const files = sources(/^zig\/.*\.zig$/).filter(({ path }) => !isTest(path));
    expect(files.length).toBeGreaterThan(15);
    const found = files.flatMap(({ path, text }) => violations(zigLayers, path, zigImports(text)));
    expect(found).toEqual([]);
  });

  test("only src/native may load native code, in tests too", () => {
    const users = sources(/^(src|acpi|coordinator|test|tools)\/.*\.ts$/)
      .filter(({ path }) => !path.startsWith("src/native/"))
      .filter(({ text }) => typescriptImports(text).includes("bun:ffi"));
    expect(users.map(({ path }) => path)).toEqual([]);
  });
});

describe("the check itself", () => {
  test("sees every form of import and no comment", () => {
    const text = `import a from "./a.ts";\nimport {\n  b,\n} from "../b.ts";\nimport "./c.ts";
      export { d } from "d";\nconst e = await import("./e.ts");
      // import f from "f";\n/* from "g" */`;
    expect(typescriptImports(text)).toEqual(["./a.ts", "../b.ts", "./c.ts", "d", "./e.ts"]);
    const zig = `const a = @import("../abi.zig"); // @import("no.zig")\n_ = @import("std");`;
    expect(zigImports(zig)).toEqual(["../abi.zig", "std"]);
  });

  test("resolves siblings, parents and packages", () => {
    expect(resolveImport("zig/irq/lapic.zig", "message.zig")).toBe("zig/irq/message.zig");
    expect(resolveImport("src/vmm/a.ts", "../../acpi/tables.ts")).toBe("acpi/tables.ts");
    expect(resolveImport("src/vmm/a.ts", "node:fs/promises")).toBe("node:*");
  });

  test("finds a planted violation and a file without a layer", () => {
    const plant = (file: string, name: string) => violations(typescriptLayers, file, [name]);
    expect(plant("src/vmm/board.ts", "../native/library.ts")).toEqual([
      "src/vmm/board.ts imports src/native/library.ts: src/vmm may not",
    ]);
    expect(plant("src/vmm/board.ts", "node:fs")).toHaveLength(1);
    expect(plant("src/vmm/board.ts", "../vmm-extra/x.ts")).toHaveLength(1);
    expect(plant("src/vmm/board.ts", "../base/errors.ts")).toEqual([]);
    expect(plant("src/other/x.ts", "yaml")).toHaveLength(1);
    expect(violations(zigLayers, "zig/dsm/step.zig", ["../abi.zig"])).toHaveLength(1);
    expect(violations(zigLayers, "zig/irq/lapic.zig", ["../exports.zig"])).toHaveLength(1);
  });
});
