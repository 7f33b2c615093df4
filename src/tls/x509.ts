// The X.509 library, after what it needs: `reflect-metadata` must have run before it, and a bundler
// that joins modules keeps an order only where one waits for the other.

await import("reflect-metadata");

export const x509 = await import("@peculiar/x509");

x509.cryptoProvider.set(globalThis.crypto);
