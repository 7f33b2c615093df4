// `import path from "x.so" with { type: "file" }`: Bun embeds the file and gives its path.

declare module "*.so" {
  const path: string;
  export default path;
}
