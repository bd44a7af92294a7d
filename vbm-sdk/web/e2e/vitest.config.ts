import { defineConfig } from "vitest/config";

// One after the other, in one process: they share a machine, and the machine is small.
export default defineConfig({
  test: {
    include: ["e2e/**/*.test.ts"],
    environment: "node",
    fileParallelism: false,
    // A story: what comes after a failure says nothing.
    bail: 1,
    pool: "forks",
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
