// `import("x.css", { with: { type: "text" } })`: Bun embeds the file and gives its text.

declare module "*.css" {
  const text: string;
  export default text;
}

declare module "*.svg" {
  const text: string;
  export default text;
}
