// For tests that wait for what another thread, process or host does.

/** Returns once it holds; throws where it does not within `limitMs`. */
export async function until(
  holds: () => Promise<boolean> | boolean,
  limitMs = 20_000,
): Promise<void> {
  const end = Date.now() + limitMs;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error("it never came to be");
    await Bun.sleep(5);
  }
}
